"""Stores: where the packed rows of viewers and candidates live between a writer and many readers."""
