"""`loadtest scale`: replicas and nodes that follow the load."""
