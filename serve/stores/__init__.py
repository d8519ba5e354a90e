"""Stores of packed rows with one writer and many readers: LMDB and Redis.

It may import `features` and below.
"""
