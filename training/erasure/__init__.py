"""Erase viewers from a log, its snapshots and the store.

It may import `evaluation` and the layers below it.
"""
