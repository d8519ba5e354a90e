"""Model artifacts and how they score: files, checksums, inference graph, scorers.

May import `log` and the layers below it.
"""
