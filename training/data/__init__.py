"""A log becomes rows with features and labels. Imports `network` and below."""
