"""`serve up` and `serve down`: start, supervise and stop one local cluster.

Imports `operate.status`, `operate.diff`, `operate.host`, and the layers from `runtime` down.
"""
