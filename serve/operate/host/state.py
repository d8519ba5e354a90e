"""Read the state of a run folder's service: whether it runs, is supervised and answers."""

from __future__ import annotations

import http.client
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

from serve.config.diagnoses import Diagnosis, diagnosis
from serve.operate.host.run_folder import RunFolder, memory_mib
from serve.operate.host.service_state import DeploymentState, ServiceState, SupervisedState, fields_of

# Opens local addresses, which need no proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """Return the HTTP status of `url` and the body of a page, or 0 without an answer."""
    try:
        with DIRECT.open(urllib.request.Request(url, headers=dict(headers or {})), timeout=2.0) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, b""
    except (OSError, ValueError, http.client.HTTPException):
        return 0, b""


def status_code(url: str) -> int:
    """Return the HTTP status of `url`, or 0 without an answer."""
    return get(url)[0]


def is_alive(service: ServiceState) -> bool:
    """Return True if the service answers, or has no route at which anybody could ask."""
    front = service.front
    return bool(service.applications) and (front is None or status_code(f"{front}/livez") == 200)


UNWATCHED = "unwatched"
# A state that is older than this is stale. A supervisor writes its state once a second. During a
# deploy it waits for Serve, for the proxies alone up to 30 s. On a busy machine each step takes
# some seconds more.
STALE_S = {"ready": 6.0, "deploying": 60.0}


class RunState(ServiceState):
    """State of a run folder's service, with the memory that it uses and the places of its logs.

    `state` is "stopped", "starting", "deploying", "ready", "failed", "unwatched" (it serves, and
    `supervision` says why it is not supervised) or "dead" (it was killed; `down` clears it up).
    """

    processes: int = 0
    memory_mib: int = 0
    supervision: Diagnosis | None = None
    log: str | None = None
    replica_logs: str | None = None
    kept_logs: str | None = None


def status(run_dir: Path) -> RunState:
    """Return the state of a run folder's service."""
    run = RunFolder(run_dir)
    service, processes = run.service(), run.processes()
    kept = str(run.kept_logs) if run.kept_logs.exists() else None
    if not service and not processes:
        return RunState(state="stopped", kept_logs=kept)
    service = service or SupervisedState()
    found = RunState(
        **fields_of(service, ServiceState),
        processes=len(processes),
        memory_mib=memory_mib(processes),
        log=str(run.log),
        replica_logs=str(run.replica_logs) if run.replica_logs else None,
        kept_logs=kept,
    )
    if unwatched := _unwatched(run, service, processes):
        if processes and is_alive(service):
            found.state, found.supervision = UNWATCHED, unwatched
            for app in found.applications.values():
                app.deployments = dict.fromkeys(app.deployments, DeploymentState())
        else:
            # The error of an earlier deploy is not the reason why the service ended.
            found.error = found.error if found.state == "failed" else ""
            found.state = "dead"
    if found.state in ("failed", "dead"):
        found.applications = {}
    return found


def _unwatched(run: RunFolder, service: ServiceState, processes: list[psutil.Process]) -> Diagnosis | None:
    """Return why `service.json` no longer describes the service, or None."""
    if not run.supervisors(processes):
        return diagnosis("supervisor_gone", up=run.command("up", Path(service.config)))
    # A start has a timeout of its own. While a `down` runs, the file may be gone and have no age.
    if STALE_S.get(service.state, math.inf) < (age := run.age_s()) < math.inf:
        return diagnosis("supervisor_silent", age_s=age, run=run.path, log=run.log)
    return None
