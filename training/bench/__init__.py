"""`training bench`: measure the speed of scoring and of training.

Imports `fit`, `network`, `terminal` and `serve`.
"""
