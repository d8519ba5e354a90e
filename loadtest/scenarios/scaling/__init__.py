"""`loadtest scale`: replicas and nodes follow the load. Imports `scenarios.knee` and below."""
