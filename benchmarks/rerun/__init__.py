"""Rerun of the original experiment: simulated viewers use a service whose true effect is known."""
