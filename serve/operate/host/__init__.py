"""Run folder of a service and its processes on this machine, or a cluster through its dashboard.

Imports the layers from `runtime` down, and no other tool.
"""
