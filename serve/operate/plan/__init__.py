"""`serve plan`: predict replicas and nodes with Ray's scaling code over a simulated service.

Imports `operate.host`, and the layers from `runtime` down.
"""
