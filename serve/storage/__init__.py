"""Files (whole or not there at all; Parquet) and free memory; it may import `contract`."""
