"""An artifact and how it scores. Imports `log` and below."""
