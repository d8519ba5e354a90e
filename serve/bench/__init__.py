"""`serve bench`: measures the cost of fetch and features on this machine.

May import every layer below it, among them `operate`.
"""
