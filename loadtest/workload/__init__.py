"""Declared loads: profiles with their shapes, and the SLO.

This package may import only `loadtest.errors` and `loadtest.commands`.
"""
