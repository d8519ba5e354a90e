"""`training bench`: measure the speed of scoring.

Imports `fit`, `network`, `terminal` and `serve`.
"""
