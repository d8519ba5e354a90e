"""A surface drafted from a log. Imports `fit` and below."""
