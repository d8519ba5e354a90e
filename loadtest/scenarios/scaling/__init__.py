"""`loadtest scale`: replicas and nodes that follow the load. Imports `report` and below."""
