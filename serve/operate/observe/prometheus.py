"""A local Prometheus on the running service: `python -m serve observe`. It listens on 127.0.0.1 only."""

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
from serve.log.atomic_files import write_whole
from serve.operate.host.run_folder import RunFolder

HERE = Path(__file__).parent
RULES = (HERE / "rules.yml", HERE / "alerts.yml")
DASHBOARD = HERE / "dashboard.json"
JOBS = {"tabrank": "metrics_url", "haproxy": "haproxy_metrics_url"}  # and where `service.json` tells the page
HOST = "127.0.0.1"
RETENTION = "7d"
SCRAPE_EVERY_S = 5.0  # Ray renews its page every 2 s
LOOK_EVERY_S = 1.0
STOP_S = 10.0
MISSING = "prometheus is not on PATH; install it (Debian: apt-get install prometheus) and try again"


def observe(
    run: RunFolder, data: Path, port: int, progress: Callable[[str], None], every_s: float = SCRAPE_EVERY_S
) -> None:
    """Watch the service of a run folder until interrupted, wherever a restart of it puts its page.

    Raises:
        TabrankError: Prometheus is missing, the port is taken, or no service runs.
    """
    if "metrics_url" not in run.service():
        raise TabrankError(f"no service runs in {run.path}; start one with: python -m serve up")
    with started(run, data, port, every_s) as process:
        progress(f"Prometheus on http://{HOST}:{port} (rules and alerts: /rules, /alerts); Ctrl-C ends it")
        progress(f"in Grafana, add it as a data source, then import {DASHBOARD}")
        while process.poll() is None:
            write_targets(run, data)
            time.sleep(LOOK_EVERY_S)
    raise TabrankError(
        f"Prometheus has ended by itself with code {process.returncode}; see what it says above"
    )


@contextlib.contextmanager
def started(
    run: RunFolder, data: Path, port: int, every_s: float = SCRAPE_EVERY_S
) -> Iterator[subprocess.Popen[bytes]]:
    """A Prometheus on the service, with our rules, until the block ends."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise TabrankError(MISSING)
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, port), timeout=1.0):
        raise TabrankError(f"--port: {port} is taken on {HOST}; give another")
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
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def configuration(data: Path, every_s: float) -> dict[str, Any]:
    """What Prometheus is told: our rules, and files of targets that it reads again when they change."""
    scrapes = [{"job_name": job, "file_sd_configs": [{"files": [str(_targets(data, job))]}]} for job in JOBS]
    every = f"{round(every_s * 1e3)}ms"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": list(map(str, RULES)),
        "scrape_configs": scrapes,
    }


def write_targets(run: RunFolder, data: Path) -> None:
    """Tell where the service's pages are now; a service that is gone keeps its place, so that it is missed."""
    service = run.service()
    for job, key in JOBS.items():
        path = _targets(data, job)
        url = service.get(key)
        if url or not path.exists():
            targets = json.dumps([{"targets": [urlsplit(url).netloc]}] if url else [])
            if not path.exists() or path.read_text() != targets:
                write_whole(path, targets.encode())


def _targets(data: Path, job: str) -> Path:
    return data / f"{job}.json"
