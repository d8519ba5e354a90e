"""The simulated world, with a known data-generating process. Imports `terminal` and `serve`."""
