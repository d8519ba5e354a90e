"""`loadtest overload`: two and three times the knee."""
