"""Offline evaluation: estimate the value of an artifact from rankings with a randomised order.

Imports `audit` and the layers below it, and nothing else of `experiment`.
"""
