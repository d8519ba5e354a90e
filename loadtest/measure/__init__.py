"""Measurement of a run: outcomes, phases, timelines and verdicts.

This package may import `loadtest.workload` and what `workload` may import.
"""
