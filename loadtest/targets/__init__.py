"""Targets of a load: tabrank, plain FastAPI, and the workspace with their data.

This package may import `serve`, `loadtest.generator` and what `generator` may import.
"""
