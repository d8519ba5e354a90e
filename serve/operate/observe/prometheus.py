"""Run a local Prometheus on the running service for `serve observe`, on 127.0.0.1 only."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_file, refuse_unwritable
from serve.operate.host.run_folder import RunFolder
from serve.storage.atomic_files import write_whole

HERE = Path(__file__).parent
RULES = (HERE / "rules.yml", HERE / "alerts.yml")
DASHBOARD = HERE / "dashboard.json"
# The scrape jobs, each with the key of `service.json` under which the URL of its page is.
JOBS = {"tabrank": "metrics_url", "haproxy": "haproxy_metrics_url"}
HOST = "127.0.0.1"
RETENTION = "7d"
# Ray renews its page every 2 s.
SCRAPE_EVERY_S = 5.0
LOOK_EVERY_S = 1.0
STOP_S = 10.0
MISSING = "prometheus is not on PATH; install it (Debian: apt-get install prometheus) and retry"


def observe(run: RunFolder, data: Path, port: int, progress: Callable[[str], None]) -> None:
    """Watch the service of a run folder until interrupted, and follow it after a restart.

    Raise TabrankError if Prometheus is missing, the port is in use, or no service runs.
    """
    if run.service() is None:
        raise TabrankError(f"no service runs in {run.path}; start one with: python -m serve up")
    with run_prometheus(run, data, port) as process:
        progress(f"Prometheus on http://{HOST}:{port} (rules and alerts: /rules, /alerts); Ctrl-C stops it")
        progress(f"in Grafana, add it as a data source, then import {DASHBOARD}")
        while process.poll() is None:
            write_targets(run, data)
            time.sleep(LOOK_EVERY_S)
    raise TabrankError(f"Prometheus ended unexpectedly with code {process.returncode}; see what it printed")


@contextlib.contextmanager
def run_prometheus(
    run: RunFolder, data: Path, port: int, every_s: float = SCRAPE_EVERY_S
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Prometheus on the service, with our rules, until the block ends."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise TabrankError(MISSING)
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port), timeout=1.0):
        other = port + 1 if port <= 9090 else port - 1
        raise TabrankError(f"--port: {port} is in use; try --port {other} (make observe PORT={other})")
    refuse_file(data)
    refuse_unwritable(data)
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    write_targets(run, data)
    (data / "prometheus.yml").write_text(yaml.safe_dump(configuration(data, every_s), sort_keys=False))
    command = [
        binary,
        f"--config.file={data / 'prometheus.yml'}",
        f"--storage.tsdb.path={data / 'data'}",
        f"--storage.tsdb.retention.time={RETENTION}",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()


def configuration(data: Path, every_s: float) -> dict[str, Any]:
    """Return Prometheus' configuration: our rules, and target files that it watches."""
    scrapes = [{"job_name": job, "file_sd_configs": [{"files": [str(data / f"{job}.json")]}]} for job in JOBS]
    every = f"{round(every_s * 1e3)}ms"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": list(map(str, RULES)),
        "scrape_configs": scrapes,
    }


def write_targets(run: RunFolder, data: Path) -> None:
    """Write the current pages as targets. A stopped service stays a target, so that alerts fire."""
    service = run.service()
    for job, key in JOBS.items():
        path = data / f"{job}.json"
        url = getattr(service, key, None)
        if url or not path.exists():
            targets = json.dumps([{"targets": [urlsplit(url).netloc]}] if url else [])
            if not path.exists() or path.read_text() != targets:
                write_whole(path, targets.encode())
