"""Ingest: the only writer, which applies records to state, store and log.

It may import `rollout` and below.
"""
