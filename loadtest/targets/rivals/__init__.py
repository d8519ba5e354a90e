"""Rivals of tabrank with the same store reads and features. Imports `serve`."""
