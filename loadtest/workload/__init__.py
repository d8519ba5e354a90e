"""Declared load: profiles, shapes and the SLO. Imports `commands` and `errors`."""
