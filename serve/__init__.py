"""The service: from the wire types at the bottom (`contract`) to the command line at the top."""
