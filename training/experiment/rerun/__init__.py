"""The original experiment, rerun: the simulated world's viewers at the running service."""
