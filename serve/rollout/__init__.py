"""Rollouts: how a model goes out, what is watched while it does, and how it comes back."""
