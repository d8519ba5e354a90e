"""Files and folders that appear whole or not at all; it may import `contract`."""
