"""Architecture search on Ray Tune: find the best TabNet within a time budget and a serving cost.

It imports `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`, `world`, `terminal`
and `serve`.
"""
