"""`serve bench`: measures the writer's CPU time per ranking.

May import every layer below it, among them `operate`.
"""
