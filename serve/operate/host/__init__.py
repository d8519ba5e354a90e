"""A run folder and its processes on this machine. Imports the layers below `operate`."""
