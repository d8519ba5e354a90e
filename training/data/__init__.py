"""Turn a log into rows with features and labels, point in time.

Imports `network`, `world`, `terminal`, `serve`.
"""
