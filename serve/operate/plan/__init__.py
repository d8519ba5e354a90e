"""`serve plan`: predict replicas and nodes over a trace of load, with Ray's scaling code.

Imports `operate.host`, and the layers from `runtime` down.
"""
