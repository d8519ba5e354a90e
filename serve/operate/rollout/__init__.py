"""`serve models`: its commands and tables. Imports `operate.status`."""
