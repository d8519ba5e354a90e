"""Ask the supervisor of a run folder to deploy, and report its progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.config.reader import Config
from serve.contract.commands import Parts
from serve.contract.errors import TabrankError
from serve.operate.host.field import unshared
from serve.operate.host.run_folder import POLL_S, RunFolder
from serve.operate.host.service_state import SupervisedState, Wanted

Progress = Callable[[str], None]
# Serve's control loop runs every 0.1 s and may report the old state for some iterations.
SETTLE_S = 1.0
NOTHING_RUNS = "nothing runs here; start it with: python -m serve up"
UNWATCHED = "the supervisor is gone; start a new one with: python -m serve up"


def document_of(config: Config) -> dict[str, Any]:
    """Return the Serve document of a file, with its pools of nodes."""
    return dict(unshared({**config.serve, "nodes": dict(config.nodes)}))


def config_of(path: Path, document: Mapping[str, Any]) -> Config:
    """Return a document, with its pools of nodes, as if it were read from a file."""
    serve = {key: value for key, value in document.items() if key != "nodes"}
    return Config(path, serve, document.get("nodes", {}), sha256="")


def unserved(run: RunFolder) -> TabrankError:
    """Return the refusal of a run folder in which no supervisor runs."""
    return TabrankError(f"{run.path}: {UNWATCHED if run.node() else NOTHING_RUNS}")


def request_deploy(config: Config, run: RunFolder, timeout_s: float, progress: Progress) -> None:
    """Have a run folder's supervisor deploy in place; the caller holds the folder's lock."""
    supervisors, service = run.supervisors(), run.service()
    if not supervisors or service is None:
        raise unserved(run)
    run.save_wanted(Wanted(str(config.path), document_of(config)))
    supervisors[0].send_signal(signal.SIGHUP)
    follow(run, timeout_s, progress, lambda now: now.num_deploys > service.num_deploys)


def follow(
    run: RunFolder,
    timeout_s: float,
    progress: Progress,
    done: Callable[[SupervisedState], bool],
    known: str = "",
) -> None:
    """Report the supervisor's stages until `done`; raise TabrankError on an error but `known`."""
    deadline = time.monotonic() + timeout_s
    stage, parts = "", Parts(progress)
    while True:
        # Read before the file, so that the last stage of an ending supervisor is not missed.
        alive = bool(run.supervisors())
        service = run.service()
        if service and service.stage not in ("", stage):
            stage = service.stage
            parts.begin(stage)
        if service and done(service):
            if service.error not in ("", known):
                raise TabrankError(f"{service.error} (more in {run.log})")
            parts.end()
            return
        if not alive:
            lines = run.log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
            raise TabrankError(f"the service ended early: {lines[-1]} (more in {run.log})")
        if time.monotonic() > deadline:
            raise TabrankError(f"no answer in {timeout_s:.0f} s, at: {stage or 'start'} (more in {run.log})")
        time.sleep(POLL_S)
