"""Canonical log on disk: journal, segments, snapshots, replay.

It may import `stores` and below.
"""
