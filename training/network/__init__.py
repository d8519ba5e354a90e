"""TabNet, its inputs, calibration and export. Imports `world` and below."""
