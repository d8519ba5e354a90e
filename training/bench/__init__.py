"""`training bench`: measure the speed of scoring and training, and quality against known truths.

Imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `data`, `network`, `world`, `terminal`,
`serve`.
"""
