"""Rerun of the original experiment: simulated viewers at a running service, with the true effect.

Imports `audit` and the layers below it, and nothing else of `experiment`.
"""
