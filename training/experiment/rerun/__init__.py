"""The simulated world's viewers at a running service."""
