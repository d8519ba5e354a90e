"""`training bench`: the cost of scoring and training. Imports `audit` and below."""
