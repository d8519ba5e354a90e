"""`loadtest chaos`: faults, one class each. Imports `scenarios.knee`, `report` and below."""
