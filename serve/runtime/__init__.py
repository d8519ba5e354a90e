"""What leans on Ray Serve and its private parts. Imports `http` and below."""
