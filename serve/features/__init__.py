"""Surface, feature kinds and state: the feature code shared by training and serving.

It may import `client` and `contract`.
"""
