"""Load tests: open-loop load generation and fault injection against a running service.

Each folder may import those after it in this list: `scenarios`, `report`, `targets`, `generator`,
`measure`, `workload`. Only `targets` imports `serve`; the others may import `serve.client` alone.
"""
