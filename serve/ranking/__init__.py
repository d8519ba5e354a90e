"""One ranking, from admission to answer; no Ray. Imports `ingest` and below."""
