"""Evaluate models: measures, intervals, slices, drift, leakage and reports.

It imports `examination`, `data`, `network`, `world`, `terminal` and `serve`.
"""
