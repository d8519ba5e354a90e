"""The contract with training: surface, feature kinds and state. Imports `contract`."""
