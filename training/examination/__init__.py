"""Examination: how often candidates are looked at, by the position at which they are shown.

It imports `data`, `network`, `world`, `terminal` and `serve`.
"""
