"""One screen on a running service: its own answers, and its metrics at two moments."""
