"""The Python client of a tabrank service."""
