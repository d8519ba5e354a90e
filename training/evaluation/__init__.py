"""Evaluate models: measures, intervals, slices, drift, leakage and reports.

Imports `examination`, `data`, `network`, `world`, `terminal`, `serve`.
"""
