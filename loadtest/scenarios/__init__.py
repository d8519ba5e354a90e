"""Scenarios: one module or folder per command. Imports `report` and below."""
