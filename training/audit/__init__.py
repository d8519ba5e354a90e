"""Check that a service ranks as its model was trained: audit its log, or replay one over HTTP.

It imports `search`, `drafting`, `fit`, `evaluation`, `data`, `network`, `world`, `terminal`,
`serve`.
"""
