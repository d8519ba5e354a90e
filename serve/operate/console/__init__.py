"""`serve console`: a read-only web page about the running service, in a process of its own.

Imports `operate.rollout` and `operate.status`, and the layers from `runtime` down.
"""
