"""Open-loop load and fault injection. Of `serve` it imports `serve.client`; `targets` imports more."""
