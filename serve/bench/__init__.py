"""`serve bench`: measures what fetch, features and recording cost on this machine.

May import every layer below it, among them `operate`.
"""
