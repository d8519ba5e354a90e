"""The value of an artifact on explored rankings, before any traffic."""
