"""`serve observe`: run a local Prometheus with rules, alerts and a dashboard.

Imports `operate.host`, and the layers from `runtime` down.
"""
