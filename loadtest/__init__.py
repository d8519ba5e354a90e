"""Load tests: open-loop load generation and fault injection against a running service.

Each may import those after it in this list: `__main__`, `terminal`, `scenarios`, `locustfile`,
`report`, `targets`, `generator`, `measure`, `workload`, `commands`, `errors`. Only `targets`
imports `serve` freely; the others import its client, contract, storage and `machine` alone.
Nothing else imports `loadtest`.
"""
