"""`training bench`: measure the speed of scoring and training, and quality against known truths.

Imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`,
`world`, `terminal`, `serve`.
"""
