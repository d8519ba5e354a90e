"""Erasure of viewers from a log, its snapshots and the store.

It may import `evaluation` and below.
"""
