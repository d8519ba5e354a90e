"""The effect of an experiment's arms, from the served log. Imports `audit` and below."""
