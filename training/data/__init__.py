"""Turn a log into rows with labels and with the features that were known at each ranking's time.

It imports `network`, `world`, `terminal` and `serve`.
"""
