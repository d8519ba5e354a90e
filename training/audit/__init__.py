"""Compare a service with its training: audit of its log, and replay over HTTP.

Imports `search`, `drafting`, `fit`, `evaluation`, `data`, `network`, `world`, `terminal`, `serve`.
"""
