"""Start, watch and stop the service on this machine: a detached supervisor with its own Ray cluster."""

from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from serve.config import Config, read
from serve.diff.consequence import Consequence
from serve.diff.difference import Difference
from serve.diff.running import InFolder, Progress, follow, hand_over
from serve.environment import environment
from serve.errors import TabrankError
from serve.run_folder import SUPERVISE, RunFolder
from serve.status.vitals import answers_of, degraded_by
from serve.supervisor import route, status_code

NEVER = "never started"
GRACE_S = 15.0  # for running requests and the replicas' own shutdown; then processes are ended by id


def up(
    config_path: Path,
    *,
    run_dir: Path | None = None,
    haproxy: bool = True,
    timeout_s: float = 120.0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Start the service of `config_path` and return once it answers.

    A service that already runs with the same file is left alone; a changed file is deployed in place, without
    a restart where Serve allows it. What an earlier, killed run of this folder left behind is ended first.
    Returns the content of `service.json`, with `seconds`, `action` ("started", "deployed" or "none"), `changes` and
    `degraded`: why it would not rank as the file says, such as that there is no model.
    Raises TabrankError with the reason, after everything has been stopped again.
    """
    begin = time.monotonic()
    config = read(config_path)
    for warning in config.warnings:
        progress(f"warning: {warning}")
    run = RunFolder.of(run_dir or config.path.parent / "var" / "run")
    with run.locked(timeout_s):
        action, changes = _act(config, run, haproxy, timeout_s, progress)
        service = {**run.service(), "action": action, "changes": changes}
        degraded = degraded_by(answers_of(service), run.deployed())
    return {**service, "degraded": degraded, "seconds": round(time.monotonic() - begin, 1)}


def down(run_dir: Path, *, progress: Progress = lambda message: None) -> dict[str, Any]:
    """Stop the service of this run folder, whatever state it is in; nothing running is no error.

    Returns `was` (the state found, NEVER where there is no such folder), `killed` (names of processes that had to be
    ended by id) and `seconds`.
    """
    begin = time.monotonic()
    run = RunFolder.of(run_dir)
    if not run.path.exists() and not run.processes():
        return {"was": NEVER, "killed": [], "seconds": 0.0}
    with run.locked(60.0):
        was = status(run_dir)["state"]
        killed = _clean(run, progress)
    return {"was": was, "killed": killed, "seconds": round(time.monotonic() - begin, 1)}


def status(run_dir: Path) -> dict[str, Any]:
    """What runs in this run folder: `state`, and, unless it is stopped, `service.json`, the memory used and the logs.

    `state` is "stopped", "starting", "deploying", "ready", "failed" or "dead" (killed; `down` clears it).
    """
    run = RunFolder.of(run_dir)
    service, processes = run.service(), run.processes()
    if not service and not processes:
        return {"state": "stopped"}
    state = service.get("state", "starting") if run.supervisors() else "dead"
    memory = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory += process.memory_full_info().pss  # shared pages are counted once
    logs = {"log": str(run.log), "replica_logs": str(run.replica_logs)}
    return {**service, "state": state, "processes": len(processes), "memory_mib": memory >> 20, **logs}


def _act(
    config: Config, run: RunFolder, haproxy: bool, timeout_s: float, progress: Progress
) -> tuple[str, list[Any]]:
    """Bring the service to `config` by the mildest means, nothing, a deploy in place or a start; what changed."""
    difference = _difference(config, run)
    changes = difference.plain()["changes"] if difference else []
    if difference is not None:
        service = run.service()
        if service["haproxy"] != haproxy:
            progress("restarting: the ingress changes")
        elif not difference.changes and not service["error"] and service["state"] == "ready":
            return "none", changes
        else:
            for line in difference.lines():
                progress(line)
            if difference.worst < Consequence.RESTART:
                progress("deploying the changed file in place")
                hand_over(config, run, timeout_s, progress)
                return "deployed", changes
            progress("restarting: the file changes what Serve reads only when it starts")
        if config.port != urlsplit(service["url"]).port:
            _refuse_busy_port(config)  # before what runs well is stopped for it
    _clean(run, progress)
    _refuse_busy_port(config)
    try:
        run.temp.mkdir(mode=0o700)  # HAProxy's admin socket is open to everyone who can reach it
    except FileExistsError:
        raise TabrankError(f"{run.temp}: exists and belongs to somebody else; remove it") from None
    try:
        _detach(config, run, haproxy)
        follow(run, timeout_s, progress, lambda now: now["state"] in ("ready", "failed"))
    except BaseException:
        _clean(run, progress)
        raise
    return "started", changes


def _difference(config: Config, run: RunFolder) -> Difference | None:
    """How the file differs from what runs and answers here; None if nothing does."""
    try:
        running = InFolder(run)
    except TabrankError:
        return None
    alive = status_code(running.url + route(running.document) + "/livez") == 200
    return running.difference(config) if alive else None


def _clean(run: RunFolder, progress: Progress) -> list[str]:
    """Stop what runs, end what is left, and remove the files; returns the names of what had to be killed."""
    supervisors = run.supervisors()
    if supervisors:
        progress("stopping the running service")
        for process in supervisors:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(supervisors, timeout=GRACE_S)
        psutil.wait_procs(run.processes(), timeout=2.0)  # Ray's agents notice a second later
    killed = []
    deadline = time.monotonic() + GRACE_S
    while left := run.processes():  # again, because a dying parent may have just started a child
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                killed.append(process.name())
                process.kill()
        psutil.wait_procs(left, timeout=2.0)
        if time.monotonic() > deadline:
            raise TabrankError(f"process {left[0].pid} cannot be ended; end it, then try again")
    shutil.rmtree(run.temp, ignore_errors=True)
    run.forget()
    return killed


def _refuse_busy_port(config: Config) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except OSError as error:
        place = f"{config.path}: http_options: {config.host}:{config.port}"
        if error.errno != errno.EADDRINUSE:
            raise TabrankError(f"{place}: {error.strerror}; give an address of this machine") from None
        holder = "another process"
        with contextlib.suppress(psutil.Error):
            for connection in psutil.net_connections("tcp"):
                if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                    continue
                if connection.laddr.port == config.port:
                    holder = f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
        raise TabrankError(f"{place} is taken by {holder}; stop that, or give another port") from None


def _detach(config: Config, run: RunFolder, haproxy: bool) -> None:
    """Start the supervisor in a session of its own; it outlives the command that started it."""
    command = [sys.executable, "-m", "serve.supervisor", SUPERVISE, str(config.path), str(run.path)]
    with run.log.open("wb") as log:
        subprocess.run(
            [*command, str(int(haproxy))],
            cwd=config.path.parent,
            env=environment(config, run, haproxy),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
        )
