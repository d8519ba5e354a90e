"""Adapters to Ray Serve and its private parts: fast path, metrics and patches.

May import `http` and the layers below it.
"""
