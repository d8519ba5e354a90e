"""From a log to a published artifact. Imports `serve`, never `loadtest`."""
