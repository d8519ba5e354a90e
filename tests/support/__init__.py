"""Fakes, builders and checks that several tests use, and the commands of the project."""
