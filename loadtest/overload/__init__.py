"""More than the service can do, offered for a minute: what it still answers, and how."""
