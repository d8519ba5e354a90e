"""Simulated world with a known data-generating process, and logs of it.

Imports `terminal` and `serve`.
"""
