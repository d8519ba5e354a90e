"""Load, proven: Locust profiles with an SLO verdict."""
