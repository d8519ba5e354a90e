"""`cluster.yaml`: reading, validation and diagnostics.

May import `model` and the layers below it.
"""
