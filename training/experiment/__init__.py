"""Analysis of experiments: effects from the served log, and offline estimates.

Imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`,
`world`, `terminal` and `serve`.
"""
