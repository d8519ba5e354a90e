"""`loadtest chaos`: faults, one class each. Imports `scenarios.bench`, `report` and below."""
