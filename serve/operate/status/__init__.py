"""`serve status`: read the state, answers and traffic of a service, and show them on one screen.

Imports `operate.host`, and the layers from `runtime` down.
"""
