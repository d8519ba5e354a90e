"""`serve plan`: Ray's scaling code over a simulated service. Imports `operate.host`."""
