"""`cluster.yaml`: reading, validation and diagnostics.

The words of the diagnoses are in `diagnoses.toml`.

May import `model` and the layers below it.
"""
