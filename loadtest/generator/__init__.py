"""Open-loop load: bodies, arrivals, connections, dispatch. Imports `measure` and below."""
