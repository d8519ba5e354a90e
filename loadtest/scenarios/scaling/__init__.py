"""`loadtest scale`: replicas and nodes follow the load. Imports `scenarios.bench` and below."""
