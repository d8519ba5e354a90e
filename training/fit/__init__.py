"""Train an artifact from a surface and a log, in this process or on Ray Train, and publish it.

It imports `evaluation`, `examination`, `data`, `network`, `world`, `terminal` and `serve`.
"""
