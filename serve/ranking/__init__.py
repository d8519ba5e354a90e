"""The request path of one ranking, from admission to the answer.

May import `ingest` and the layers below it. Does not import Ray.
"""
