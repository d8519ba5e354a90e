"""Environment variables of the service's processes: Serve reads its own settings there at import.

`environment.toml` has the settings, each with its reason.

A setting of the user's shell wins, unless the service could not start or stop without ours.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import secrets
import socket
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.contract.metric_catalog import BOUNDS_MS
from serve.http.tracing import RUN_FOLDER
from serve.operate.host.run_folder import MARKER, RunFolder

# The port of this node's page of metrics.
METRICS_PORT = "TABRANK_METRICS_PORT"
# The port of HAProxy's own page of metrics.
HAPROXY_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT"
PORTS = range(20_000, 30_000)

_SETTINGS: Mapping[str, dict[str, str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
HAPROXY = _SETTINGS["haproxy"]
HAPROXY_PLACES = _SETTINGS["haproxy_places"]
FAST = _SETTINGS["fast"]
ONE_MACHINE = _SETTINGS["one_machine"]
OTHERS_MEMORY = _SETTINGS["others_memory"]
SEVERAL_MACHINES = _SETTINGS["several_machines"]
BOUNDS = ",".join(map(str, BOUNDS_MS))
EVERYWHERE = {name: value.format(bounds_ms=BOUNDS) for name, value in _SETTINGS["everywhere"].items()}


def environment(config: Config, run: RunFolder, temp: Path) -> dict[str, str]:
    """Return the environment of each process of this cluster; `temp` is the temporary folder."""
    env = dict(os.environ)
    # This variable would connect to another cluster.
    env.pop("RAY_ADDRESS", None)
    stats, haproxy_metrics, fallback, metrics = free_ports(4)
    _refuse_few_files(int(env.get("RAY_SERVE_HAPROXY_MAXCONN", 4096)))
    # The folder's path is short: the node's 56-character id and a file's name are added to it.
    places = {"sockets": temp / "h", "stats": stats, "metrics": haproxy_metrics, "fallback": fallback}
    forced = {
        **HAPROXY,
        **{name: value.format(**places) for name, value in HAPROXY_PLACES.items()},
        MARKER: run.cluster_id,
        # Without this, a process that sets its title overwrites its environment and the marker in
        # it.
        "SPT_NOENV": "1",
        "TABRANK_HOME": str(config.path.parent),
        RUN_FOLDER: str(run.path),
        METRICS_PORT: str(metrics),
        "PYTHONPATH": os.pathsep.join(import_folders(config)),
        # In spite of its name, 0 makes Ray bind all its own ports to 127.0.0.1 on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Each replica's gRPC port listens on all interfaces and takes pickles; it accepts only
        # callers with the token of this start. (HAProxy's two pages listen there too, with counts
        # only.)
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    return {**FAST, **ONE_MACHINE, **OTHERS_MEMORY, **EVERYWHERE, **env, **forced}


def rendered_environment(home: str) -> dict[str, str]:
    """Return the environment of each Ray process of a cluster of several machines.

    `home` is the folder of its `cluster.yaml`. The ports are Ray's defaults, since each machine is
    one node. The mode and the token of Ray's authentication come from outside, never from a
    rendered file.
    """
    return HAPROXY | FAST | SEVERAL_MACHINES | EVERYWHERE | {"TABRANK_HOME": home}


def import_folders(config: Config) -> list[str]:
    """Return the folders from which replicas import: this module's tree, then the file's folder."""
    source = str(Path(__file__).resolve().parents[3])
    # Python finds installed packages by itself.
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [*([] if source in installed else [source]), str(config.path.parent), *inherited]
    return list(dict.fromkeys(folder for folder in folders if folder))


def _refuse_few_files(max_connections: int) -> None:
    """Raise TabrankError if HAProxy could not open enough files to start.

    It needs two files per connection, two for a pipe per four connections, and some for itself and
    the health checks of replicas.
    """
    needed, limit = max_connections * 5 // 2 + 256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < needed:
        raise TabrankError(
            f"a process may open {limit} files, and HAProxy needs {needed}; raise the limit "
            f"(`ulimit -n {needed}`), or allow fewer connections with RAY_SERVE_HAPROXY_MAXCONN"
        )


def free_ports(num_ports: int) -> list[int]:
    """Return free ports outside the ranges of outgoing connections and of Ray's processes."""
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            free.append(port)
        if len(free) == num_ports:
            return free
    raise TabrankError(
        f"fewer than {num_ports} ports from {PORTS.start} to {PORTS.stop - 1} are free; stop processes there"
    )
