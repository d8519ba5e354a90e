"""TabNet, the network that ranks: its inputs, training passes, calibration and export.

It imports `world`, `terminal` and `serve`.
"""
