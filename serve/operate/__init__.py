"""Operator's tools: start, inspect, change, plan and deploy a service; one sub-package per tool.

Which question is answered where:

- `run`: how does a service start, go on after a crash, and stop on this machine? (`up`, `down`)
- `diff`: what would a changed file do to the running service, and do it (`diff`, `popular`)
- `status`: how is the service, what is wrong, and what is to be done? (`status`)
- `console`: the same on a web page, with rankings to try (`console`)
- `rollout`: which version of the model ranks? (`models`)
- `plan`: how many replicas and nodes does a load need? (`plan`)
- `render`: which objects run the service on Kubernetes? (`render kubernetes`)
- `observe`: which rules, alerts and dashboard watch it? (files only)
- `host`: where a running service is, and what is known of it: its run folder and processes, or the
  dashboard of its cluster. All other tools read it there.

`console` uses `status` and `rollout`; `run` uses `diff` and `status`; `diff` and `rollout` use
`status`; `render` uses `plan`; all use `host`. `pyproject.toml` enforces the order of these layers.
They import `runtime` and the layers below it.
"""
