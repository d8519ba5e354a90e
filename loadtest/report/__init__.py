"""Reports of the scenarios: report.json, an HTML page and plots.

This package may import `loadtest.targets` and what `targets` may import.
"""
