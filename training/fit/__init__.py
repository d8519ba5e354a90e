"""Train an artifact from a surface and a log, on Ray Train, and publish it.

Imports `evaluation`, `examination`, `data`, `network`, `world`, `terminal`, `serve`.
"""
