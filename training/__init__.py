"""Train ranking models from a log and publish them as artifacts.

Imports `serve`, never `loadtest`.
"""
