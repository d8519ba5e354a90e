"""Analyse experiments: effects from the served log, and offline estimates.

It imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`,
`world`, `terminal` and `serve`.
"""
