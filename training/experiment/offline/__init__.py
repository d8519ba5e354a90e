"""Offline evaluation: estimate the value of an artifact from rankings whose order was drawn.

It imports `audit` and the layers below it, and nothing else of `experiment`.
"""
