"""The ranking service, in layers from the command line down to the wire types.

Each may import those after it in this list, and none before it: `__main__`, `bench`, `operate`,
the modules `app` and `deployments` (which `cluster.yaml` names), `runtime`, `http`, `ranking`,
`ingest`, `rollout`, `config`, `model`, `log`, `stores`, `features`, `client`, `report`, `storage`,
`contract`.
"""
