"""Examination: how often candidates are looked at, by the position at which they are shown.

Imports `data`, `network`, `world`, `terminal`, `serve`.
"""
