"""The replicas and nodes that a `cluster.yaml` would give over a load trace, by Ray's own code."""
