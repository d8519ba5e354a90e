"""A Prometheus for the running service, its rules and alerts, and a Grafana dashboard."""
