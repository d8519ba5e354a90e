"""Two rivals with the same reads and features. Imports `serve`."""
