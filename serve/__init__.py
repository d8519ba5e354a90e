"""The ranking service, in layers from the wire types (`contract`) up to the command line."""
