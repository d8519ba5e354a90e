"""The environment of the service's processes: Serve reads its own settings from there, at import.

A setting of the user's shell wins, save where the service could not start, or be stopped, without ours.
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
from serve.contract.metric_catalog import BOUNDS_MS
from serve.http.tracing import RUN_FOLDER
from serve.operate.host.run_folder import MARKER, RunFolder

METRICS_PORT = "TABRANK_METRICS_PORT"  # of the page of this node's metrics
HAPROXY_PORT = "RAY_SERVE_HAPROXY_METRICS_PORT"  # of HAProxy's own page
PORTS = range(20_000, 30_000)

# What each process that listens calls first.
LISTENING = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.runtime.fast_path:middlewares"}
# What the fast ingress cannot do without.
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    **LISTENING,
    "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": "serve.runtime.patches:keep_ingress",
}
# A request whose replica died is asked of another one; else the three to five in flight end in a closed connection or a
# bare 500. It may be done twice, which is safe for all that we take: a ranking is known by its request_id, an event by
# its id, and what changed of a viewer or candidate comes to the same a second time. HAProxy keeps the request for it,
# if it fits 16 KiB (55 candidates: 2); a larger one is up to its client. Side by side at 900 requests/s: 80 µs of
# HAProxy's CPU a request instead of 72, p50 and p99 alike.
RETRY_ON = "conn-failure empty-response"
# What makes it fast, and quick to mend.
FAST = {
    # Our code on the replica's own event loop, gRPC between replicas: 1.5 x the requests/s.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Otherwise a Python actor parses a datagram per request: 5-9 % of a core at 900 requests/s.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # One thread passes on far more than two cores can rank; the default of 4 takes their time.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Who sends headers and stops, or reads no answer, holds a connection so long; by default an hour. (A body is the
    # edge's: serve/http/body_reader.py.)
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A killed HAProxy is back in 3.5 s instead of 30. Of these 1.5 are three misses; a check each 0.2 s saved 0.5.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
    # After a reload the old process keeps its old list of replicas; no request needs it for 120 s.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    # Ray takes a replica off HAProxy's list while it changes its settings in place (0.3 s). Where it is the only one,
    # all requests then go through Ray's Python proxy, which 1,200 a second break for half a minute. What is taken back
    # within this window never reaches HAProxy.
    "RAY_SERVE_HAPROXY_BROADCAST_COALESCE_S": "1",
    # A Scorer of which nothing was heard for 10 s is asked whether it is free before it gets a batch, which waits for
    # the answer: by default 0.1 s and then up to a second, beyond every deadline. With one of two stopped for 30 s, 46
    # of 45,000 requests fell back with these, and 3,000 without.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "0.05",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "0.05",
    # A replica that hangs is left alone after 4 s instead of 7; until then about one request in twelve, of 300 a second
    # for two replicas, runs out of time. Three misses: a full machine may hold up one answer.
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "3",
}
ONE_MACHINE = {
    # The further lines go into HAProxy's file as they stand: Ray's own settings know whole seconds only, and none for
    # how long all headers may take. Where one replica of two dies, HAProxy holds back whoever finds out for `connect`,
    # and for a second otherwise: beyond any deadline; a connection within the machine needs no 0.1 ms. And a client
    # that sends a byte of its headers a minute would hold a connection for ever.
    "RAY_SERVE_HAPROXY_RETRY_ON": f"{RETRY_ON}\n    timeout connect 50ms\n    timeout http-request 5s",
    # HAProxy beside the replicas knows of a change after the window above: a rollout need not wait 30 s per step.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
}
OTHERS_MEMORY = {
    # Above 95 % of the whole machine's memory, whoever uses it, Ray kills its own workers, controller and proxies among
    # them, four times a second until there is room. A neighbour's hunger ended a service of 1.4 GiB that way, and none
    # of these kills helps against it. A rendered cluster has machines of its own and keeps Ray's rule.
    "RAY_memory_monitor_refresh_ms": "0",
    # By default the kernel takes Ray's workers before every other process, however small they are. With this it
    # takes the largest process, be it a neighbour or a replica that leaks.
    "RAY_worker_oom_score_adjustment": "0",
}
SEVERAL_MACHINES = {
    "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
    # A machine that is gone answers nothing, and a request may still be asked of another one; by default it waits 5 s.
    "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
    # Every node's HAProxy has to hear of it.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # A load balancer has to: its health check, then its own propagation. Ray's default, said.
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "30",
}
EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of spans; without it a collector files them under unknown_service.
    "OTEL_SERVICE_NAME": "tabrank",
    # Ray runs its workers at nice 15, behind every other process of the machine: here they are the service.
    "RAY_worker_niceness": "0",
    # With glibc's default of eight heaps a core, a replica keeps what large requests took: after 11 s of
    # 1,000 candidates at 700 req/s 23 to 31 % more than before, with two heaps 9 %.
    "MALLOC_ARENA_MAX": "2",
    # The defaults (.., 50, 100, 200 ms) cannot show whether p90 < 50 and p99 < 100 ms hold.
    "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": ",".join(map(str, BOUNDS_MS)),
    # How often the page of metrics is renewed: 10 s by default, which hides what a scrape every 5 s looks for.
    # Measured: Ray's agent takes 13 ms of CPU a second instead of 7.5, the replicas no more than before.
    "RAY_metrics_report_interval_ms": "2000",
    # Gauges that are told more seldom than that come and go on the page.
    "RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_UTILIZATION_REPORT_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_UTILIZATION_WINDOW_S": "60",
    # Above 1 a warning waits until so many lines have come; without an access log there are few.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}


def environment(config: Config, run: RunFolder, temp: Path, haproxy: bool) -> dict[str, str]:
    """The environment of every process of this cluster; `temp` is its temporary folder."""
    env = dict(os.environ)
    env.pop("RAY_ADDRESS", None)  # would lead into another cluster
    stats, haproxy_metrics, fallback, metrics = _free_ports(4)
    if haproxy:
        _refuse_few_files(int(env.get("RAY_SERVE_HAPROXY_MAXCONN", 4096)))
        tunable = {**FAST, **ONE_MACHINE}
        sockets = temp / "h"  # the node's 56-character id and the file's name are still to come
        forced = {
            **HAPROXY,
            # Fixed ports of Ray's: a second cluster on the machine would fail on them.
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            HAPROXY_PORT: str(haproxy_metrics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            # By default a folder shared by all clusters, where the admin socket is open to every user.
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
        }
    else:
        tunable = {}
        # The second forces the ingress of the first, which the plain proxy does without.
        forced = {**LISTENING, "RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    tunable |= OTHERS_MEMORY | EVERYWHERE
    forced |= {
        MARKER: run.cluster_id,
        # A process that sets its title overwrites its environment, and with it the marker, if not told.
        "SPT_NOENV": "1",
        "TABRANK_HOME": str(config.path.parent),
        RUN_FOLDER: str(run.path),
        METRICS_PORT: str(metrics),
        "PYTHONPATH": os.pathsep.join(import_folders(config)),
        # The name is historical: at 0 Ray binds all its own ports to 127.0.0.1, on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Each replica's gRPC port listens on all interfaces and takes pickles: only who has this start's token
        # is heard. (HAProxy's two pages listen there too, and tell only counts.)
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    return {**tunable, **env, **forced}


def rendered_environment(home: str) -> dict[str, str]:
    """The environment of every Ray process of a cluster of several machines; `home`: where its `cluster.yaml` lies.

    The ports are Ray's own, each machine being one node's; the token comes from outside, never from a rendered file.
    """
    return {
        **HAPROXY,
        **FAST,
        **SEVERAL_MACHINES,
        **EVERYWHERE,
        "RAY_AUTH_MODE": "token",
        "TABRANK_HOME": home,
    }


def import_folders(config: Config) -> list[str]:
    """Return where replicas import from: the tree that this module lies in, then the file's own folder."""
    source = str(Path(__file__).resolve().parents[3])
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}  # found without our help
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [*([] if source in installed else [source]), str(config.path.parent), *inherited]
    return list(dict.fromkeys(folder for folder in folders if folder))


def _refuse_few_files(max_connections: int) -> None:
    """Raise TabrankError where HAProxy would not start.

    It wants two files for a connection, two for every fourth one's pipe, and some for itself and the replicas' checks.
    """
    needed, limit = max_connections * 5 // 2 + 256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= limit < needed:
        raise TabrankError(
            f"a process may have {limit} files open, and HAProxy needs {needed}; raise it (`ulimit -n {needed}`), "
            "or have fewer connections with RAY_SERVE_HAPROXY_MAXCONN"
        )


def _free_ports(num_ports: int) -> list[int]:
    """Ports that are free now, of those that neither outgoing connections nor Ray's workers and replicas take."""
    free: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            free.append(port)
        if len(free) == num_ports:
            return free
    raise TabrankError(
        f"fewer than {num_ports} ports from {PORTS.start} to {PORTS.stop - 1} are free; stop what listens there"
    )
