"""`serve models`: commands and tables for published versions.

Imports `operate.status`, and the layers from `runtime` down.
"""
