"""Analysis of experiments: effects from the served log, offline estimates, and simulations.

Imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`,
`world`, `terminal` and `serve`.
"""
