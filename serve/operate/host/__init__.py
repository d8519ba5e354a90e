"""Run folder of a service and its processes on this machine.

Imports the layers from `runtime` down, and no other tool.
"""
