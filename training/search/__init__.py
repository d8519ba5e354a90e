"""Architecture search on Ray Tune: the best TabNet within a time budget and a serving cost.

Imports `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`, `world`, `terminal` and
`serve`.
"""
