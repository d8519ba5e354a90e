"""Checks of the project's methods in simulated worlds whose truth is known.

`python -m benchmarks --help` lists them. They are not part of the wheel. They may import `serve`,
`training` and `loadtest`, and nothing imports them.
"""
