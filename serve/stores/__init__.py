"""Packed rows between one writer and many readers. Imports `features` and below."""
