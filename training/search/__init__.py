"""The search for the best network that serves within its cost."""
