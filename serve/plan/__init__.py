"""The replicas and nodes that a `cluster.yaml` would give over a load trace: the service simulated, Ray's policy run."""
