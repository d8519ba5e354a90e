"""`cluster.yaml`: read, validated, explained. Imports `model` and below."""
