"""Declared load: profiles, shapes and the SLO. Imports only `loadtest.errors` and `commands`."""
