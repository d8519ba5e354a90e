"""Rerun of the original experiment: simulated viewers at a service, and the true effect."""
