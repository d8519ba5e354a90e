"""Render the launcher file for `ray up` from the pools of `cluster.yaml`."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve.config.pools import HEAD
from serve.config.reader import Config
from serve.config.settings import is_loopback
from serve.contract.errors import TabrankError
from serve.operate.host.environment import rendered_environment
from serve.operate.render.clouds import choose_machines, cloud_values
from serve.operate.render.options import Cloud, Fake, Launcher, Local, Machines
from serve.operate.render.pools import Pools, our_arguments, pools_of
from serve.operate.render.schema import refuse_invalid
from serve.operate.render.templates import dump, fill, load

HOME = "$HOME/tabrank"


def launcher(config: Config, options: Launcher) -> str:
    """Return the text of the launcher file, checked by Ray's own schema.

    Raise TabrankError where the provider cannot run the pools or the options.
    """
    pools = pools_of(config)
    values = {
        **vars(options),
        "sub_command": options.sub_command,
        "file": config.path.name,
        "config": str(config.path),
        "port": config.port,
        "max_workers": pools.max_workers,
        "pools": _pool_values(pools),
    }
    match options:
        case Fake():
            values |= _fake_values(config)
        case Local():
            values |= _machine_values(config, pools, options) | _local_values(pools, options)
        case Cloud():
            choose_machines(options, values["pools"])
            values |= _machine_values(config, pools, options) | cloud_values(options, config.port)
    (template,) = load(f"{options.sub_command}.yaml")
    if isinstance(options, Machines):
        values |= _fill_sections(template, values)
        (template,) = load("launcher.yaml")
        _check_reachable(config, pools, options)
    document = fill(template, values)
    notes = document.pop("notes")
    refuse_invalid(document)
    return dump(notes, document)


def _fill_sections(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a provider's template, and the pools with a `node_config` each."""
    node_config = template.pop("node_config", None)
    pools = [{**pool, "node_config": fill(node_config, {**values, **pool})} for pool in values["pools"]]
    return {**fill(template, values), "pools": pools}


def _pool_values(pools: Pools) -> list[dict[str, Any]]:
    return [
        {
            "pool": name,
            # The fake provider recognizes the head by this name only.
            "node_type": "ray.head.default" if name == HEAD else name,
            "num_cpus": pool.num_cpus,
            "num_gpus": pool.num_gpus or None,
            "min_nodes": 0 if name == HEAD else pool.min_nodes,
            "max_nodes": 0 if name == HEAD else pool.max_nodes,
        }
        for name, pool in pools.all.items()
    ]


def _fake_values(config: Config) -> dict[str, Any]:
    if config.serve.get("proxy_location") != "HeadOnly":
        raise TabrankError(
            f"{config.path}: proxy_location: on one machine the proxies of several nodes conflict on one port; "
            "set HeadOnly for `render fake`"
        )
    return {"environment": {**rendered_environment(str(config.path.parent)), "RAY_FAKE_CLUSTER": "1"}}


def _local_values(pools: Pools, options: Local) -> dict[str, Any]:
    if len(pools.workers) > 1:
        names = ", ".join(pools.workers)
        raise TabrankError(f"render local: only one kind of worker is possible, not {names}; keep one")
    addresses = options.worker_ip or []
    values = {
        "pools": [],
        "min_workers": 0,
        "worker_ip": addresses,
        "head_flags": f"--num-cpus={pools.head.num_cpus} --labels=pool={HEAD}",
    }
    for name, pool in pools.workers.items():
        least = max(pool.min_nodes, min(pool.max_nodes, 1))
        if len(addresses) < least:
            raise TabrankError(
                f"nodes.{name} needs {least} or more machines, but --worker-ip names {len(addresses)}; add some"
            )
        values |= {
            "max_workers": min(pool.max_nodes, len(addresses)),
            "min_workers": pool.min_nodes,
            "worker_flags": f"--num-cpus={pool.num_cpus} --labels=pool={name}",
        }
    return values


def _machine_values(config: Config, pools: Pools, options: Machines) -> dict[str, Any]:
    """Return the values that the launcher files of all providers share."""
    several = bool(pools.max_workers)
    head, worker = rendered_environment(HOME), rendered_environment(HOME)
    if several:
        # By default Ray keeps its state in memory, and a worker gives up a minute after the head
        # falls silent: the service would end with its head. With these settings the replicas go
        # on, and a head that is restarted over the same folder finds them (`loadtest chaos --fault
        # head`).
        head |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{HOME}/gcs/{version('ray')}"}
        worker |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}
    backends = {args.backend for _, args in our_arguments(config)}
    return {
        "several": several,
        "state_outside": several and options.image,
        "head_serves": several and pools.head.num_cpus,
        "one_ingress": several and config.serve.get("proxy_location") == "HeadOnly",
        "source": None if options.image else _source(),
        "extras": "redis,torch" if "torch" in backends else "redis",
        "head_environment": _exports(head),
        "worker_environment": _exports(worker),
        "head_flags": f"--labels=pool={HEAD}",
        "worker_flags": "",
        "min_workers": None,
    }


def _exports(environment: dict[str, str]) -> str:
    return " ".join(f'{key}="{value}"' for key, value in environment.items())


def _source() -> str:
    source = Path(__file__).resolve().parents[3]
    if not (source / "pyproject.toml").is_file():
        raise TabrankError(f"{source}: not tabrank's source tree; name a container image with --image")
    return str(source)


def _check_reachable(config: Config, pools: Pools, options: Machines) -> None:
    """Warn where only the machines can reach the service; refuse --allow, which has no effect."""
    allow = isinstance(options, Cloud) and options.allow
    if not is_loopback(config.host) or not (allow or pools.max_workers):
        return
    problem = f"{config.path}: http_options.host is {config.host}: only the machines themselves can reach the service"
    if allow:
        raise TabrankError(f"{problem}, so that --allow has no effect; set it to 0.0.0.0")
    print(f"warning: {problem}; set it to 0.0.0.0 behind a firewall", file=sys.stderr)
