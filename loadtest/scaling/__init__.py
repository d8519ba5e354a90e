"""Proofs of scaling: replicas and nodes that come with the load and go with it, and no request that fails."""
