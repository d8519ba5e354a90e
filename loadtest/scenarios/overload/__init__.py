"""`loadtest overload`: load above the knee. Imports `scenarios.bench`, `report` and below."""
