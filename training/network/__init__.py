"""TabNet: its inputs, training passes, calibration and export.

Imports `world`, `terminal`, `serve`.
"""
