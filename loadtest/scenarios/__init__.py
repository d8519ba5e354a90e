"""Scenarios: one module or folder per command.

This package may import `loadtest.report` and what `report` may import.
"""
