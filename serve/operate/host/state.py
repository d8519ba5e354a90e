"""Read the state of a run folder's service: whether it runs, is supervised and answers."""

from __future__ import annotations

import http.client
import math
import shlex
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from serve.config.application import OUR_APPLICATION
from serve.config.diagnoses import Diagnosis, diagnosis
from serve.operate.host.run_folder import RunFolder, memory_mib

RUN = Path("var/run")
# A local address needs no proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# A deployment whose name alone is known.
UNKNOWN: dict[str, Any] = {"status": "UNKNOWN", "message": "", "target": None, "replicas": {}, "ids": []}


def up_command(config: Path, run: RunFolder) -> str:
    """Return the command that starts or restarts the service of a run folder with a file."""
    given = "" if run == RunFolder.of(RUN) else f" --run {shlex.quote(str(run.path))}"
    return f"python -m serve up {shlex.quote(str(config))}{given}"


def route(document: Mapping[str, Any]) -> str:
    """Return the route of the application to probe: the first of ours, else the first."""
    applications = document.get("applications", ())
    ours = [app for app in applications if app["import_path"] == OUR_APPLICATION]
    first: Mapping[str, Any] = next(iter([*ours, *applications]), {})
    return str(first.get("route_prefix") or "/").rstrip("/")


def get(url: str, headers: Mapping[str, str] = MappingProxyType({})) -> tuple[int, bytes]:
    """Return the HTTP status of `url` and the body of a page, or 0 without an answer."""
    try:
        with DIRECT.open(urllib.request.Request(url, headers=dict(headers)), timeout=2.0) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""
    except (OSError, ValueError, http.client.HTTPException):
        return 0, b""


def status_code(url: str) -> int:
    """Return the HTTP status of `url`, or 0 without an answer."""
    return get(url)[0]


UNWATCHED = "unwatched"
# A supervisor writes its state once a second. During a deploy it waits for Serve: 30 s for the
# proxies alone. On a busy machine each step takes some seconds more.
STALE_S = {"ready": 6.0, "deploying": 60.0}


def status(run_dir: Path) -> dict[str, Any]:
    """Return the state of a run folder's service.

    Unless `state` is "stopped", the result also has `service.json`, the memory used and the logs.
    `state` is "stopped", "starting", "deploying", "ready", "failed", "unwatched" (it serves, and
    `unwatched` gives the reason and the remedy, `supervision` the diagnosis) or "dead" (killed;
    `down` clears it).
    """
    run = RunFolder.of(run_dir)
    service, processes = run.service(), run.processes()
    kept = {"kept_logs": str(run.kept_logs)} if run.kept_logs.exists() else {}
    if not service and not processes:
        return {"state": "stopped", **kept}
    unwatched = _unwatched(run, service, processes)
    state = service.get("state", "starting")
    if unwatched:
        state, unwatched = (UNWATCHED, unwatched) if is_alive(service) else ("dead", None)
        # The error of an earlier deploy is not why it ended.
        service |= {"error": ""} if state == "dead" and service.get("state") != "failed" else {}
    if unwatched or state in ("failed", "dead"):
        service["applications"] = {
            name: {**app, "deployments": dict.fromkeys(app["deployments"], UNKNOWN)}
            for name, app in service.get("applications", {}).items()
            if unwatched
        }
    memory = memory_mib(processes)
    found = {"state": state, "processes": len(processes), "memory_mib": memory}
    found |= {"unwatched": str(unwatched or ""), "supervision": unwatched and asdict(unwatched)}
    logs = run.replica_logs
    return {**service, **found, "log": str(run.log), "replica_logs": logs and str(logs), **kept}


def _unwatched(
    run: RunFolder, service: Mapping[str, Any], processes: list[psutil.Process]
) -> Diagnosis | None:
    """Return why `service.json` no longer describes the service, or None."""
    if not run.supervisors(processes):
        return diagnosis("supervisor_gone", up=up_command(Path(service.get("config", "cluster.yaml")), run))
    # A start has its own timeout.
    if (age := run.age_s()) > STALE_S.get(service.get("state", ""), math.inf):
        return diagnosis("supervisor_silent", age=age, run=run.path, log=run.log)
    return None


def is_alive(service: Mapping[str, Any]) -> bool:
    """Return whether the service answers."""
    documents = [{**app, "name": name} for name, app in service.get("applications", {}).items()]
    front = service.get("url", "") + route({"applications": documents})
    return bool(documents) and status_code(front + "/livez") == 200
