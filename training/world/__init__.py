"""A simulated world of audio rooms, whose truth is known, and logs of it.

The rooms are called Spaces. It imports `terminal` and `serve`.
"""
