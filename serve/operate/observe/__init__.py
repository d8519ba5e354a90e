"""`serve observe`: a local Prometheus with rules, alerts and a dashboard. Imports `operate.host`."""
