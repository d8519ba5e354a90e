"""Experiments: what one showed, whether to believe it, and what one would show."""
