"""Environment variables of the service's processes: Serve reads its own settings there at import.

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
from pathlib import Path

from serve.config.reader import Config
from serve.contract.errors import TabrankError
from serve.contract.metric_catalog import BOUNDS_S
from serve.http.tracing import RUN_FOLDER
from serve.operate.host.run_folder import MARKER, RunFolder

# The port of this node's page of metrics.
METRICS_PORT = "TABRANK_METRICS_PORT"
# The port of HAProxy's own page of metrics.
HAPROXY_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT"
# The port of Ray's dashboard, where it is asked for.
DASHBOARD_PORT = "TABRANK_DASHBOARD_PORT"
LOCAL = "127.0.0.1"
PORTS = range(20_000, 30_000)

# Each process that listens calls this first.
LISTENING = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.runtime.fast_path:middlewares"}
# The fast ingress needs all of these.
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    **LISTENING,
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "serve.runtime.patches:keep_ingress",
}
# HAProxy sends a request again to another replica when the first one died. Otherwise the three to
# five requests in flight end in a closed connection or a bare 500. A request may run twice. This is
# safe: rankings are deduplicated by request_id, events by id, and other records are idempotent.
# HAProxy buffers a request for the retry if it fits 16 KiB (55 candidates: 2 KiB); a larger one is
# left to its client. Measured side by side at 900 requests/s: 80 µs of HAProxy's CPU a request
# instead of 72, with equal p50 and p99.
RETRY_ON = "conn-failure empty-response"
# Settings for speed and for fast recovery.
FAST = {
    # Runs our code on the replica's own event loop, with gRPC between replicas: 1.5 x the
    # requests/s.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Otherwise a Python actor parses a datagram per request: 5-9 % of a core at 900 requests/s.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # One thread forwards far more than two cores can rank; the default of 4 takes CPU from them.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Limits how long a client that stops sending headers or reads no answer holds a connection; the
    # default is an hour. (Bodies have their own limit in serve/http/body_reader.py.)
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A killed HAProxy is back in 3.5 s instead of 30. Three missed checks take 1.5 s of these;
    # a check every 0.2 s saved only 0.5 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
    # After a reload the old process keeps its old list of replicas; no request needs it for 120 s.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    # Ray takes a replica off HAProxy's list while it changes the replica's settings in place (0.3
    # s). If it is the only replica, all requests then go through Ray's Python proxy, which 1,200
    # requests/s overload for half a minute. A removal undone within this window never reaches
    # HAProxy.
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
    # Before a batch goes to a Scorer that has been silent for 10 s, Ray asks the Scorer whether it
    # is free, and the batch waits for the answer. The default wait is 0.1 s, growing to 1 s, beyond
    # every deadline. With one of two Scorers stopped for 30 s, 46 of 45,000 requests fell back with
    # these values, and 3,000 without.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "0.05",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "0.05",
    # A hanging replica is removed after 4 s instead of 7. Until then about one request in twelve,
    # at 300 requests/s for two replicas, times out. Three misses, because a busy machine may delay
    # one.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "3",
}
ONE_MACHINE = {
    # The further lines go into HAProxy's file as they are, because Ray's own settings take whole
    # seconds only and do not limit the time for all headers. Where one replica of two dies, HAProxy
    # delays its retry by `connect`, otherwise by 1 s, which is beyond any deadline; a connection
    # within the machine takes less than 0.1 ms. Without `http-request`, a client that sends one
    # byte of its headers a minute would hold a connection for ever.
    "RAY_SERVE_HAPROXY_RETRY_ON": f"{RETRY_ON}\n    timeout connect 50ms\n    timeout http-request 5s"
    "\n    timeout check 2s",
    # Two checks may take 2 s each, instead of three 1 s. On a busy machine three in a row were
    # late, HAProxy gave the only replica up, and all requests went through Ray's Python proxy. It
    # is a tenth as fast, and its work delayed the next checks as well.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "2",
    # HAProxy beside the replicas sees a change after the window above, so that a rollout need not
    # wait 30 s per step.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
}
OTHERS_MEMORY = {
    # Above 95 % of the machine's memory, whichever process uses it, Ray kills its own workers,
    # controller and proxies included, four times a second until there is room. A neighbour's memory
    # use ended a service of 1.4 GiB that way, and none of these kills frees the neighbour's memory.
    # A rendered cluster has machines of its own and keeps Ray's rule.
    "RAY_memory_monitor_refresh_ms": "0",
    # By default the kernel kills Ray's workers before every other process, however small they are.
    # With this setting it kills the largest process: a neighbour, or a replica that leaks.
    "RAY_worker_oom_score_adjustment": "0",
}
SEVERAL_MACHINES = {
    "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
    # A machine that is gone does not answer, and the request can be sent to another one. The
    # default wait is 5 s.
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
    # The HAProxy of each node has to see the change.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # A load balancer has to see the change: its health check, then its own propagation. This is
    # Ray's default, written out.
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "30",
}
EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The name in spans; without it a collector files them under unknown_service.
    "OTEL_SERVICE_NAME": "tabrank",
    # Ray runs its workers at nice 15, behind every other process; here the workers are the service.
    "RAY_worker_niceness": "0",
    # With glibc's default of eight heaps a core, a replica keeps the memory of large requests: 23
    # to 31 % more after 11 s of 1,000 candidates at 700 requests/s, and 9 % more with two heaps.
    "MALLOC_ARENA_MAX": "2",
    # The defaults (.., 50, 100, 200 ms) cannot show whether p90 < 50 and p99 < 100 ms hold.
    "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": ",".join(f"{bound * 1e3:g}" for bound in BOUNDS_S),
    # The interval at which the page of metrics is renewed. The default of 10 s is too long for a
    # scrape every 5 s. Measured: Ray's agent takes 13 ms of CPU a second instead of 7.5, and the
    # replicas no more than before.
    "RAY_metrics_report_interval_ms": "2000",
    # A gauge that is reported less often than the page is renewed comes and goes on the page.
    "RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_UTILIZATION_REPORT_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_UTILIZATION_WINDOW_S": "60",
    # Above 1 a warning waits until so many lines exist; without an access log there are few.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}


def haproxy_places(sockets: Path, stats: int, metrics: int, fallback: int) -> dict[str, str]:
    """Return the ports and files of a node's HAProxy; `sockets` is a folder with a short path.

    The node's 56-character id and the file's name are appended to a socket's path.
    """
    return {
        # Ray fixes these ports, and a second cluster on the machine would fail on them.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        HAPROXY_PORT: str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # The default folder is shared by all clusters, with the admin socket open to every user.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
    }


def environment(
    config: Config, run: RunFolder, temp: Path, haproxy: bool, dashboard: bool = False
) -> dict[str, str]:
    """Return the environment of each process of this cluster; `temp` is its temporary folder."""
    env = dict(os.environ)
    # It would lead into another cluster.
    env.pop("RAY_ADDRESS", None)
    stats, haproxy_metrics, fallback, metrics, dashboard_port = free_ports(5)
    if haproxy:
        _refuse_few_files(int(env.get("RAY_SERVE_HAPROXY_MAXCONN", 4096)))
        tunable = FAST | ONE_MACHINE
        forced = HAPROXY | haproxy_places(temp / "h", stats, haproxy_metrics, fallback)
    else:
        tunable = {}
        # Throughput mode would force the HAProxy ingress, which the plain proxy replaces.
        forced = {**LISTENING, "RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    tunable |= OTHERS_MEMORY | EVERYWHERE
    forced |= {
        MARKER: run.cluster_id,
        # Without this, a process that sets its title overwrites its environment and the marker in
        # it.
        "SPT_NOENV": "1",
        "TABRANK_HOME": str(config.path.parent),
        RUN_FOLDER: str(run.path),
        METRICS_PORT: str(metrics),
        "PYTHONPATH": os.pathsep.join(import_folders(config)),
        # The name is historical: at 0 Ray binds all its own ports to 127.0.0.1, on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Each replica's gRPC port listens on all interfaces and takes pickles; it accepts only
        # callers with the token of this start. (HAProxy's two pages listen there too, with counts
        # only.)
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    env.pop(DASHBOARD_PORT, None)
    forced |= {DASHBOARD_PORT: str(dashboard_port)} if dashboard else {}
    return {**tunable, **env, **forced}


def rendered_environment(home: str) -> dict[str, str]:
    """Return the environment of each Ray process of a cluster of several machines.

    `home` is the folder of its `cluster.yaml`. The ports are Ray's defaults, since each machine is
    one node. The token comes from outside, never from a rendered file.
    """
    settings = HAPROXY | FAST | SEVERAL_MACHINES | EVERYWHERE
    return settings | {"RAY_AUTH_MODE": "token", "TABRANK_HOME": home}


def import_folders(config: Config) -> list[str]:
    """Return the folders from which replicas import: this module's tree, then the file's folder."""
    source = str(Path(__file__).resolve().parents[3])
    # Python finds installed packages by itself.
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [*([] if source in installed else [source]), str(config.path.parent), *inherited]
    return list(dict.fromkeys(folder for folder in folders if folder))


def _refuse_few_files(max_connections: int) -> None:
    """Raise TabrankError where HAProxy could not open enough files to start.

    It needs two files per connection, two for every fourth connection's pipe, and some for itself
    and the checks of replicas.
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
