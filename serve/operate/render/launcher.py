"""Render the launcher file for `ray up` from the pools of `cluster.yaml`."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serve.config.pools import HEAD
from serve.config.reader import Config
from serve.config.settings import is_loopback
from serve.contract.errors import TabrankError
from serve.operate.host.environment import rendered_environment
from serve.operate.render.options import Aws, Azure, Cloud, Fake, Launcher, Local, Machines
from serve.operate.render.pools import Pools, our_arguments, pools_of
from serve.operate.render.templates import dump, fill, load

HOME = "$HOME/tabrank"
# The parameter of AWS with the id of Ubuntu's newest image, which differs by region. Ray's own
# table has images of 2023 without Python 3.11.
UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"


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
            _choose_machines(options, values["pools"])
            values |= _machine_values(config, pools, options) | _cloud_values(options, config.port)
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
        for name, pool in {HEAD: pools.head, **pools.workers}.items()
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


def _choose_machines(options: Cloud, pools: list[dict[str, Any]]) -> None:
    """Give each pool its machine type, the requested one or else the smallest that fits."""
    is_default = options.machine_image == type(options).machine_image
    if is_default and any(pool["num_gpus"] for pool in pools):
        raise TabrankError(
            f"render {options.sub_command}: a pool has GPUs; name an image with their driver: --machine-image"
        )
    requested = dict(options.instance or ())
    names = [pool["pool"] for pool in pools]
    for name in requested:
        if name not in names:
            raise TabrankError(f"--instance {name}: `nodes` has no such pool; it has {', '.join(names)}")
    (machines,) = load("machines.yaml")
    for pool in pools:
        instance = requested.get(pool["pool"]) or _smallest(machines[options.sub_command], pool)
        pool |= {"instance": instance, "has_gpu": pool["num_gpus"] or instance.startswith("g2-")}


def _cloud_values(options: Cloud, port: int) -> dict[str, Any]:
    """Return the values of a cloud's template."""
    match options:
        case Aws():
            return _aws_values(options, port)
        case Azure():
            return _azure_values(options)
    return {"allowed": ",".join(options.allow or ["CIDR"])}


def _smallest(table: Mapping[int, Mapping[int, str]], pool: Mapping[str, Any]) -> str:
    """Return the machine type with the fewest GPUs, and then CPUs, that are enough."""
    num_cpus, num_gpus = pool["num_cpus"], pool["num_gpus"] or 0
    for gpus, types in table.items():
        for cpus, name in types.items():
            if cpus >= num_cpus and gpus >= num_gpus and bool(gpus) == bool(num_gpus):
                return name
    raise TabrankError(
        f"nodes.{pool['pool']}: no machine in our table has {num_cpus} CPUs and {num_gpus} GPUs; "
        f"name one with --instance {pool['pool']}=TYPE"
    )


def _aws_values(options: Aws, port: int) -> dict[str, Any]:
    if not options.machine_image:
        raise TabrankError(
            "--machine-image is missing; for Ubuntu 24.04, use the output of: `aws ssm get-parameter "
            f"--region {options.region} --name {UBUNTU} --query Parameter.Value --output text`"
        )
    allow = options.allow or []
    opened = f"{port} from {', '.join(allow)}" if allow else "nothing else (--allow CIDR opens the service)"
    return {"ranges": [{"range": cidr} for cidr in allow], "opened": opened}


def _azure_values(options: Azure) -> dict[str, Any]:
    keys = ("image_publisher", "image_offer", "image_sku", "image_version")
    parts = options.machine_image.split(":")
    if len(parts) != len(keys):
        raise TabrankError(
            f"--machine-image {options.machine_image}: use PUBLISHER:OFFER:SKU:VERSION, such as {Azure.machine_image}"
        )
    group = options.resource_group or options.name
    allowed = " ".join(options.allow or ["CIDR"])
    return {**dict(zip(keys, parts, strict=True)), "resource_group": group, "allowed": allowed}


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
    # Without line breaks the command stays readable in the file.
    text = " ".join(f'{key}="{value}"' for key, value in environment.items())
    return text.replace("\n", "\"$'\\n'\"")


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


def refuse_invalid(document: dict[str, Any]) -> None:
    """Raise TabrankError where the installed Ray would refuse the launcher file."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Ray prints and logs the defaults that it fills in.
    output = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(output):
            validate_config(prepare_config(copy.deepcopy(document)))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the top"
        raise TabrankError(f"Ray refuses the launcher file at {place}: {error.message}") from None
    except (ValueError, RuntimeError, SystemExit) as error:
        raise TabrankError(f"Ray refuses the launcher file: {error}") from None
    finally:
        logging.disable(logging.NOTSET)
