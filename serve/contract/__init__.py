"""Wire types, errors, validation and metric names that every layer shares.

Bottom layer: it imports no other folder of the project.
"""
