"""Load tests: open-loop load generation and fault injection against a running service.

Only `loadtest.targets` imports `serve`. All other modules may import `serve.client` alone.
"""
