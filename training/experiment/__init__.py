"""The experiment: what it showed, and what a new artifact would have earned before any traffic."""
