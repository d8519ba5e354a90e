"""Experiments: what two arms did, what they would do, and what they did in truth where that is known."""
