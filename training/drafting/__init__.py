"""From a log to the draft of its surface."""
