"""Targets of a load: tabrank, its rivals, the workspace. Imports `serve`, `generator` and below."""
