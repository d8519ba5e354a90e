"""The ranking service, in layers from the command line down to the wire types.

Each folder may import those after it in this list, and none before it: `bench`, `operate`,
`runtime`, `http`, `ranking`, `ingest`, `rollout`, `config`, `model`, `log`, `stores`, `features`,
`client`, `contract`. `app` and `deployments`, which `cluster.yaml` names, stand above `runtime`.
"""
