"""What a scenario leaves behind: report, page and plots. Imports `targets` and below."""
