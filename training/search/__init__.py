"""Many networks on Ray Tune beside their rivals. Imports `drafting` and below."""
