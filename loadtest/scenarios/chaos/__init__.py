"""`loadtest chaos`: faults, each a class, and the run that injects them under load.

This package may import `loadtest.scenarios.knee`, `loadtest.report` and what these may import.
"""
