"""Load tests: open-loop load generation and fault injection against a running service.

Each module or package may import those that follow it in this list: `__main__`, `terminal`,
`scenarios`, `locustfile`, `report`, `targets`, `generator`, `measure`, `workload`, `commands`,
`errors`. Only `targets` imports `serve` freely. The others import only `serve`'s client, contract,
report, storage and `operate.host.machine`. No other package imports `loadtest`.
"""
