"""Load generation: request bodies, the times to send them, and connections.

This package may import `loadtest.measure` and what `measure` may import.
"""
