"""What came back: outcomes, phases, timelines, verdicts. Imports `workload` and below."""
