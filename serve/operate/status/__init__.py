"""What runs, its vital signs, on one screen. Imports `operate.diff` and `operate.host`."""
