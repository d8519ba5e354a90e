"""The simulated world of `spaces`: its people, its law, and the log that it leaves."""
