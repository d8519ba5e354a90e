"""HTTP in and out; no Ray. Imports `ranking` and below."""
