"""Evaluate models: measures, intervals, slices, drift, leakage and reports.

Imports `data`, `network`, `world`, `terminal`, `serve`.
"""
