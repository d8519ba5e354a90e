"""Open-loop load generation: bodies, arrivals, connections. Imports `measure` and below."""
