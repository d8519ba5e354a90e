"""`serve bench`: the cost of fetch and features. Imports `operate` and below."""
