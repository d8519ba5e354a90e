"""Measurement of a run: outcomes, phases, timelines and verdicts. Imports `workload` and below."""
