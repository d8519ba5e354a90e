"""Render the launcher file for `ray up` from the pools of `cluster.yaml`, for any provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve.config.pools import HEAD
from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.operate.host.environment import rendered_environment
from serve.operate.render import fake
from serve.operate.render.head_state import FOLDER, head_environment, head_loss_notes, worker_environment
from serve.operate.render.pods import METRICS_PORT
from serve.operate.render.pools import Pools, backends_of, pools_of
from serve.operate.render.providers import CLOUDS, Cloud, ProviderOptions
from serve.operate.render.schema import refuse_invalid

PROVIDERS = (*CLOUDS, "local", "fake")
HOME = "$HOME/tabrank"
# The same folder inside a container.
HOME_IN_IMAGE = "/home/tabrank/tabrank"
GCS_PORT, DASHBOARD_PORT, OBJECT_MANAGER_PORT = 6379, 8265, 8076
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The parts of the source tree that no machine needs.
LEFT_OUT = [".git", ".venv", "var", "tests", "__pycache__"]

BEFORE_UP = [
    "Keep closed to the outside: HAProxy's pages (8404, 9101) and its fallback (8500), metrics (8080), the replicas' "
    "ports (from 30000 on), and Ray's own.",
    "This file does not contain the token of Ray's own ports: `ray get-auth-token --generate` writes it to "
    "~/.ray/auth_token, which is copied to each machine.",
    "Mount folders that the arguments name by absolute paths on each machine yourself.",
]


@dataclass(frozen=True)
class Launch:
    """Choices for a launch: the provider, and a container image or an installation from source."""

    provider: str
    options: ProviderOptions
    image: str | None = None
    idle_minutes: float = 5.0
    gcs_port: int = GCS_PORT


def launcher(config: Config, launch: Launch) -> str:
    """Return the text of the launcher file, checked by Ray's own schema.

    Raise TabrankError where the provider cannot run the pools or the options.
    """
    pools = pools_of(config)
    document, notes = _document(config, pools, launch)
    refuse_invalid(document)
    body = yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True)
    return "".join(f"# {line}\n" for line in notes) + body


def _document(config: Config, pools: Pools, launch: Launch) -> tuple[dict[str, Any], list[str]]:
    head_line = f"`ray up` file for {launch.provider}, rendered from {config.path.name}: edit that file."
    if launch.provider == "fake":
        return _fake(config, pools, launch), [head_line, "For tests: each node is a process of one machine."]
    _refuse_unreachable(config, launch)
    sections = {
        "cluster_name": launch.options.name,
        "max_workers": pools.max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": launch.idle_minutes,
        **_docker(launch, pools),
    }
    if launch.provider == "local":
        own, commands, notes = _local(pools, launch)
    else:
        own, commands, notes = _cloud(CLOUDS[launch.provider], config, pools, launch)
    notes = [head_line, *notes, *BEFORE_UP, *head_loss_notes(config, pools)]
    return {**sections, **own, **_files(config, launch), **_setup(config, pools, launch, commands)}, notes


def _cloud(
    cloud: Cloud, config: Config, pools: Pools, launch: Launch
) -> tuple[dict[str, Any], tuple[str, str], list[str]]:
    options = launch.options
    if any(pool.num_gpus for pool in pools.all.values()) and not options.machine_image:
        raise TabrankError(
            f"--provider {launch.provider}: a pool has GPUs; name an image with their driver: --machine-image"
        )
    for name in options.instances or ():
        if name not in pools.all:
            raise TabrankError(f"--instance {name}: `nodes` has no such pool; it has {', '.join(pools.all)}")
    types = {}
    for name, pool in pools.all.items():
        resources = {"CPU": pool.num_cpus, **({"GPU": pool.num_gpus} if pool.num_gpus else {})}
        types[name] = {
            "resources": resources,
            "node_config": cloud.node_config(options, cloud.instance(name, pool, options)),
            "labels": {"pool": name},
            "min_workers": 0 if name == HEAD else pool.min_nodes,
            "max_workers": 0 if name == HEAD else pool.max_nodes,
        }
    own = {
        "provider": cloud.provider(options, options.region or cloud.region, config.port),
        "auth": _auth(options),
        "available_node_types": types,
        "head_node_type": HEAD,
    }
    return own, (f"--labels=pool={HEAD}", ""), cloud.remaining_steps(options, config.port)


def _local(pools: Pools, launch: Launch) -> tuple[dict[str, Any], tuple[str, str], list[str]]:
    options = launch.options
    if not options.head_ip or (pools.max_workers and not options.worker_ips):
        raise TabrankError(
            "--provider local: give the addresses of your machines with --head-ip and --worker-ip"
        )
    if len(pools.workers) > 1:
        names = ", ".join(pools.workers)
        raise TabrankError(f"--provider local: only one kind of worker is possible, not {names}; keep one")
    name, pool = next(iter(pools.workers.items()), ("", None))
    least, most = (pool.min_nodes, pool.max_nodes) if pool else (0, 0)
    if len(options.worker_ips) < least:
        raise TabrankError(
            f"nodes.{name}.min_nodes is {least}, but --worker-ip names {len(options.worker_ips)} machines; add some"
        )
    own = {
        "max_workers": min(most, len(options.worker_ips)),
        "min_workers": least,
        "provider": {"type": "local", "head_ip": options.head_ip, "worker_ips": list(options.worker_ips)},
        "auth": _auth(options),
    }
    commands = (f"--num-cpus={pools.head.num_cpus} --labels=pool={HEAD}", "")
    if pool:
        commands = (commands[0], f"--num-cpus={pool.num_cpus} --labels=pool={name}")
    return (
        own,
        commands,
        [
            "Ray changes no firewall of these machines. Left to you: a firewall that admits only your gateway to "
            "the service's port, only your Prometheus to 8080, and only these machines to each other on all ports "
            "(Ray's 6379, 8076, 10001-19999 and its random ones, HAProxy's 8404, 8500 and 9101, the replicas' from "
            "30000 on); Python 3.11 or newer on each machine."
        ],
    )


def _fake(config: Config, pools: Pools, launch: Launch) -> dict[str, Any]:
    if config.serve.get("proxy_location", "EveryNode") != "HeadOnly":
        raise TabrankError(
            f"{config.path}: proxy_location: on one machine the proxies of several nodes conflict on one port; "
            "set HeadOnly for --provider fake"
        )
    # The starter of such a cluster, `loadtest.targets.fake_cluster`, reads the environment here.
    environment = {**rendered_environment(str(config.path.parent)), "RAY_FAKE_CLUSTER": "1"}
    empty: dict[str, Any] = {
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    return {
        "cluster_name": launch.options.name,
        "max_workers": pools.max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": launch.idle_minutes,
        "provider": fake.provider(launch.gcs_port),
        "available_node_types": fake.node_types(pools),
        "head_node_type": fake.HEAD_TYPE,
        "metadata": {"config": str(config.path), "environment": environment},
        **empty,
    }


def _docker(launch: Launch, pools: Pools) -> dict[str, Any]:
    if not launch.image:
        return {}
    docker: dict[str, Any] = {
        "image": launch.image,
        "container_name": "tabrank",
        # Each waiting request is a connection at HAProxy and at a replica.
        "run_options": ["--ulimit nofile=65536:65536"],
    }
    # A container that ends is removed with all its files, so the head's state lies outside it.
    if pools.max_workers:
        docker["head_run_options"] = [f"--volume {HOME}/{FOLDER}:{HOME_IN_IMAGE}/{FOLDER}"]
    return {"docker": docker}


def _files(config: Config, launch: Launch) -> dict[str, Any]:
    mounts = {
        "~/tabrank/cluster.yaml": str(config.path),
        # Ray reads the token there.
        "~/.ray/auth_token": "~/.ray/auth_token",
    }
    if launch.image:
        return {"file_mounts": mounts}
    source = Path(__file__).resolve().parents[3]
    if not (source / "pyproject.toml").is_file():
        raise TabrankError(f"{source}: not tabrank's source tree; name a container image with --image")
    return {"file_mounts": {**mounts, "~/tabrank/source": str(source)}, "rsync_exclude": LEFT_OUT}


def _setup(config: Config, pools: Pools, launch: Launch, flags: tuple[str, str]) -> dict[str, Any]:
    several = bool(pools.max_workers)
    begin_head = _begin(head_environment(HOME) if several else {})
    begin_worker = _begin(worker_environment() if several else {})
    ports = f"--object-manager-port={OBJECT_MANAGER_PORT} --metrics-export-port={METRICS_PORT}"
    head = f"--head --port={GCS_PORT} {ports} {flags[0]}"
    worker = f"--address=$RAY_HEAD_IP:{GCS_PORT} {ports} {flags[1]}"
    autoscaling = "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1"
    deploy = f"serve deploy --address http://127.0.0.1:{DASHBOARD_PORT} ~/tabrank/cluster.yaml"
    packages = CLOUDS[launch.provider].head_packages if launch.provider in CLOUDS else ""
    return {
        "initialization_commands": _before_container(launch, several),
        "setup_commands": _installation(config, launch),
        "head_setup_commands": [f"python3 -m pip install --quiet {packages}"] if packages else [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{begin_head} {head} {autoscaling}",
            f"export RAY_AUTH_MODE=token; {deploy}",
        ],
        "worker_start_ray_commands": ["ray stop", f"{begin_worker} {worker}".rstrip()],
    }


def _begin(own: Mapping[str, str]) -> str:
    environment = {**rendered_environment(HOME), **own}
    exports = " ".join(f'{key}="{value}"' for key, value in environment.items())
    return f"ulimit -n 65536; export {exports}; ray start"


def _before_container(launch: Launch, several: bool) -> list[str]:
    if not launch.image:
        return []
    install = (
        "sudo apt-get update -q && sudo apt-get install -y -q docker.io && sudo usermod -aG docker $USER"
    )
    # Created here, the folder belongs to the login user, like the container; docker would use root.
    return [f"command -v docker || ({install})", *([f"mkdir -p {HOME}/{FOLDER}"] if several else [])]


def _installation(config: Config, launch: Launch) -> list[str]:
    # The image contains the installation.
    if launch.image:
        return []
    extras = ",".join(["redis", *sorted(backends_of(config) & {"torch"})])
    pip = "~/tabrank/venv/bin/python -m pip install --quiet"
    lock = "~/tabrank/source/lock.txt"
    pinned = f"--constraint ~/tabrank/source/constraints.txt --constraint {lock} --build-constraint {lock}"
    path = 'export PATH="$HOME/tabrank/venv/bin:$PATH"'
    return [
        "python3 -c 'import ensurepip' || (sudo apt-get update -q && sudo apt-get install -y -q python3-venv)",
        "test -x ~/tabrank/venv/bin/python || python3 -m venv ~/tabrank/venv",
        # Install the lock's own pip first: older ones do not check the hashes of constraints.
        f"sed -n '/^pip==/,/[^\\\\]$/p' {lock} > ~/tabrank/pip.txt",
        f"{pip} --require-hashes --requirement ~/tabrank/pip.txt",
        f'{pip} --no-require-hashes --only-binary :all: {pinned} "$HOME/tabrank/source[{extras}]"',
        f"grep -q tabrank/venv ~/.bashrc || echo '{path}' >> ~/.bashrc",
    ]


def _auth(options: ProviderOptions) -> dict[str, Any]:
    key = {"ssh_private_key": options.ssh_key} if options.ssh_key else {}
    return {"ssh_user": options.ssh_user, **key}


def unreachable(config: Config, launch: Launch) -> str | None:
    """Return why only the machines themselves could reach the service; None if others can."""
    if launch.provider == "fake" or config.host not in LOOPBACK or not pools_of(config).max_workers:
        return None
    return (
        f"{config.path}: http_options.host is {config.host}: only the machines themselves can reach the service; set "
        "it to 0.0.0.0 behind a firewall"
    )


def _refuse_unreachable(config: Config, launch: Launch) -> None:
    if launch.options.allow and config.host in LOOPBACK:
        raise TabrankError(
            f"{config.path}: http_options.host is {config.host}: no address that --allow admits could reach it; "
            "set it to 0.0.0.0"
        )
