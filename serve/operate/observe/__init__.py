"""Rules, alerts and the Grafana dashboard, as files for any Prometheus and Grafana.

`serve render kubernetes` writes the rules into its PrometheusRule, and `make observe` starts a
local Prometheus with them.
"""
