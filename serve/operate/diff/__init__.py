"""`serve diff` and `serve popular`: compare a file with the running service, and deploy in place.

Imports `operate.status` and `operate.host`, and the layers from `runtime` down.
"""
