"""Measures, intervals, slices, drift and reports. Imports `data` and below."""
