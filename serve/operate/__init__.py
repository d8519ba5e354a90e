"""The operator's tools, a sub-package each. Imports `runtime` and below."""
