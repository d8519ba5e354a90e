"""Measure the speed of scoring: `python -m training bench`.

It imports `fit`, `network`, `terminal` and `serve`.
"""
