"""Faults under load: what the service still answers while one lasts, and how soon it is whole again."""
