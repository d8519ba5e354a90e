"""Is a `cluster.yaml` right: its keys, its values, and its parts against each other."""
