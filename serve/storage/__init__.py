"""Files, which are complete or not there at all, Parquet, and free memory; imports `contract`."""
