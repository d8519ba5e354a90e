"""Benchmarks of training and of what it makes."""
