"""Experiments: what the served log says of two arms, and whether the statistics keep what they promise."""
