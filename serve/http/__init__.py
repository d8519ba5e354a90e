"""The HTTP API: routes, API keys, bodies, OpenAPI and tracing.

May import `ranking` and the layers below it. Does not import Ray.
"""
