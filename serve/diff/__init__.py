"""How a `cluster.yaml` differs from what runs, what the change would do, and the change itself."""
