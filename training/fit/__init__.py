"""A surface and a log to an artifact, on Ray Train. Imports `evaluation` and below."""
