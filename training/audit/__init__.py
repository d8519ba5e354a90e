"""Is what was served what was trained: audit and replay over HTTP. Imports `search` and below."""
