"""One module or folder a command. Imports `report` and below."""
