"""Reports of the scenarios: report.json, HTML page and plots. Imports `targets` and below."""
