"""Proofs of the project to itself, in worlds whose truth is known; not part of the wheel.

`python -m benchmarks --help` lists them. They may import `serve`, `training` and `loadtest`, and
nothing imports them.
"""
