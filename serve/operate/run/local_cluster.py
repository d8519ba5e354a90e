"""Start and stop the service on this machine: a detached supervisor with its own Ray cluster."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil

from serve.config.reader import Config, read
from serve.contract.errors import TabrankError
from serve.operate.diff.consequence import Consequence
from serve.operate.diff.meaning import difference
from serve.operate.host.deploying import Progress, document_of, follow, request_deploy
from serve.operate.host.environment import environment
from serve.operate.host.kill_switch import kept, switched_on
from serve.operate.host.machine import load_per_core, overload
from serve.operate.host.run_folder import GRACE_S, NODE, STOP_S, SUPERVISE, RunFolder, wait_for_end
from serve.operate.host.running_service import LocalService, overtaken
from serve.operate.host.service_state import ServiceState, SupervisedState, Wanted, fields_of
from serve.operate.host.state import is_alive, status
from serve.operate.status.causes import of_answers
from serve.operate.status.vitals import answers_of, by_kind

NEVER = "never started"
# Ray may fail to start on a busy machine. If it fails this often in a row, there is another reason.
MAX_STARTS = 3
# On an overloaded machine, the timeout of a start is multiplied by the number of processes per
# core, but by no more than this.
MAX_STRETCH = 4.0


def up(
    config_path: Path,
    *,
    run_dir: Path | None = None,
    yes: bool = False,
    timeout_s: float = 120.0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Start the service of `config_path` and return once it answers.

    A service that already runs with the same file is left alone. A changed file is deployed in
    place, without a restart if Serve allows that; `yes` allows changes that lose data, fail
    callers or end the kill switch. A service without a supervisor gets a new one, without a gap.
    Where no service runs, the kill switch of the last one stays on, unless `yes` is given.
    Processes that a killed start of this folder left behind are ended first. A start that fails in
    Ray itself is repeated, and may take longer if the machine is overloaded.

    Returns:
        The content of `service.json`, with `seconds`, `action` ("started", "deployed", "taken
        over" or "none"), `changes`, `degraded` (why it would not rank as the file says, such as a
        missing model) and `advice`.

    Raises:
        TabrankError: with the reason. A failed start is cleaned up. After a failed deploy or
            takeover, the service goes on as before.
    """
    begin = time.monotonic()
    config = read(config_path)
    for warning in config.warnings:
        progress(f"warning: {warning}")
    run = RunFolder(run_dir or config.path.parent / "var" / "run")
    compared = _deployed(run)
    with run.locked(timeout_s):
        action, changes = _Start(config, run, timeout_s, progress).act(yes, compared)
        service = _known(run)
        degraded, advice = by_kind(of_answers(answers_of(service)))
    return {
        **msgspec.to_builtins(fields_of(service, ServiceState)),
        "action": action,
        "changes": changes,
        "degraded": degraded,
        "advice": advice,
        "seconds": round(time.monotonic() - begin, 1),
    }


def down(run_dir: Path, *, progress: Progress = lambda message: None) -> dict[str, Any]:
    """Stop the service of this run folder, whatever its state; a stopped service is not an error.

    Return `was` (the state that was found, or NEVER if there is no such folder), `killed` (the
    names of processes that had to be killed), `kept_logs` (the folder of the logs, or None) and
    `seconds`.
    """
    begin = time.monotonic()
    run = RunFolder(run_dir)
    if not run.path.exists() and not run.processes() and run.temp is None:
        return {"was": NEVER, "killed": [], "kept_logs": None, "seconds": 0.0}
    was = "unknown"
    with run.locked(60.0):
        # Another version may have started it.
        with contextlib.suppress(TabrankError):
            was = status(run_dir).state
        killed, kept = _clean(run, progress)
    seconds = round(time.monotonic() - begin, 1)
    return {"was": was, "killed": killed, "kept_logs": kept and str(kept), "seconds": seconds}


@dataclass(frozen=True)
class _Start:
    """A file for the service of a run folder, and how to bring the service to it."""

    config: Config
    run: RunFolder
    timeout_s: float
    progress: Progress

    def act(self, yes: bool, compared: tuple[Wanted, ...]) -> tuple[str, list[Any]]:
        """Bring the service to the file in the mildest way; return the action and the changes.

        `compared` is what was deployed when the command began, before it waited for the lock.
        """
        try:
            self.run.deployed()
        except TabrankError as error:
            # There is no document of the running service with which the file could be compared.
            if self.run.processes() and not yes:
                raise
            self.progress(str(error))
        last = _deployed(self.run)
        taken_over, changes, before = _take_over(self.run, self.timeout_s, self.progress), [], {}
        if (running := _running(self.run)) is not None:
            service, found, before = running.state, difference(running, self.config), running.document
            changes = found.plain()["changes"]
            if found.needs_yes and not yes:
                confirm = found.refusal(self.run.command("up", self.config.path))
                refusal = "\n".join([*found.lines(), confirm])
                if not taken_over:
                    raise TabrankError(refusal)
                # The service runs and is supervised again. An error here would make systemd end it.
                self.progress(refusal)
                return "taken over", changes
            if found.changes and last != compared:
                raise overtaken(running.where, service)
            if not found.changes and not service.error and service.state == "ready":
                return "taken over" if taken_over else "none", changes
            for line in found.lines():
                self.progress(line)
            if found.worst < Consequence.RESTART:
                self.progress("deploying the changed file in place")
                request_deploy(self.config, self.run, self.timeout_s, self.progress)
                return "deployed", changes
            self.progress("restarting: the file changes a setting that Serve reads only at its start")
            if self.config.port != urlsplit(service.url).port:
                # Check the new port before a healthy service is stopped for it.
                _refuse_busy_port(self.config)
        document = document_of(self.config)
        if (on := kept(document, *(one.document for one in last))) != document:
            stays = "" if yes else " only with --yes, or: python -m serve popular --off"
            self.progress(f"the kill switch was on, and ends{stays}")
            document = document if yes else on
        _clean(self.run, self.progress)
        _refuse_busy_port(self.config)
        self._begin(document, before)
        return "started", changes

    def _begin(self, document: dict[str, Any], before: Mapping[str, Any]) -> None:
        """Start the service with a document; `before` is what ran until now, or empty.

        A start that fails in Ray itself is repeated while time is left.
        """
        begin, num_left = time.monotonic(), MAX_STARTS
        until = begin + self.timeout_s
        while True:
            num_left -= 1
            if busy := overload():
                until = max(until, begin + self.timeout_s * min(load_per_core(), MAX_STRETCH))
                self.progress(f"{busy}; waiting up to {until - time.monotonic():.0f} s")
            # The folder is private, because everyone who can reach HAProxy's admin socket may use
            # it.
            temp = self.run.make_temp()
            try:
                env = environment(self.config, self.run, temp)
                self.run.save_wanted(Wanted(str(self.config.path), document, dict(before)))
                _detach(self.config.path, self.run, env)
                left_s = until - time.monotonic()
                follow(self.run, left_s, self.progress, lambda now: now.state in ("ready", "failed"))
                return
            except BaseException as error:
                service = _known(self.run)
                _clean(self.run, self.progress)
                if not isinstance(error, TabrankError):
                    raise
                # Serve never got the file, so the file cannot be the reason.
                is_of_ray = service.state == "failed" and not service.applications
                if not is_of_ray or not num_left or time.monotonic() > until:
                    busy = overload()
                    remedy = f"; {busy}, start it again when the load is lower" if busy else ""
                    raise TabrankError(f"{error}{remedy}") from None
                self.progress(f"Ray did not start, trying again: {error}")


def _deployed(run: RunFolder) -> tuple[Wanted, ...]:
    """Return what was deployed, and was to be; of another version's files, what is readable."""
    with contextlib.suppress(TabrankError):
        return run.deployed()
    with contextlib.suppress(TabrankError):
        return (run.wanted() or Wanted("", {}),)
    return ()


def _running(run: RunFolder) -> LocalService | None:
    """Return the service that answers here, or None."""
    with contextlib.suppress(TabrankError):
        running = LocalService(run)
        return running if is_alive(running.state) else None
    return None


def _known(run: RunFolder) -> SupervisedState:
    """Return the content of `service.json`; if another version wrote it, nothing is known."""
    try:
        return run.service() or SupervisedState()
    except TabrankError:
        return SupervisedState(state="unknown")


def _take_over(run: RunFolder, timeout_s: float, progress: Progress) -> bool:
    """Supervise a running service that has no supervisor; return True if that was needed."""
    service = _known(run)
    is_known = service.state in ("ready", "deploying") and service.document
    if run.supervisors() or not is_known or len(node := run.node()) < len(NODE):
        return False
    progress("taking over a running service that has no supervisor")
    # The environment of any of the cluster's processes has the token and the ports of its start.
    _detach(Path(service.config), run, node[0].environ())
    follow(run, timeout_s, progress, lambda now: now.pid != service.pid, known=service.error)
    return True


def _clean(run: RunFolder, progress: Progress) -> tuple[list[str], Path | None]:
    """Stop the service, end remaining processes, keep the logs, and remove the files.

    Return the names of the processes that had to be killed, and the folder of the logs.
    """
    if supervisors := run.supervisors():
        is_up = _known(run).state not in ("starting", "failed")
        progress("stopping the running service" if is_up else "cleaning up after a start that did not finish")
        for process in supervisors:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        wait_for_end(supervisors, GRACE_S + STOP_S)
    killed, kept = run.end(), None
    try:
        kept = run.keep_logs()
    except OSError as error:
        progress(f"some logs could not be kept: {error}")
    if run.temp is not None:
        shutil.rmtree(run.temp, ignore_errors=True)
    # The kill switch outlives the service, so that no restart ends it.
    run.remove_state(keep_wanted=any(switched_on(one.document) for one in _deployed(run)))
    return killed, kept


def _refuse_busy_port(config: Config) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except OSError as error:
        place = f"{config.path}: http_options: {config.host}:{config.port}"
        if error.errno != errno.EADDRINUSE:
            raise TabrankError(f"{place}: {error.strerror}; use an address of this machine") from None
        holder = "another process"
        with contextlib.suppress(psutil.Error):
            for one in psutil.net_connections("tcp"):
                is_here = one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", 0) == config.port
                if is_here and one.pid:
                    holder = f"{psutil.Process(one.pid).name()} (process {one.pid})"
        raise TabrankError(f"{place} is in use by {holder}; stop it, or choose another port") from None


def _detach(config: Path, run: RunFolder, env: Mapping[str, str]) -> None:
    """Start the supervisor in its own session, so that it outlives the command that started it."""
    command = [sys.executable, "-m", "serve.operate.run.supervisor", SUPERVISE, str(run.path)]
    # Append while the cluster runs, so that the log of its earlier supervisor stays.
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if run.node() else os.O_TRUNC), 0o600)
    with open(log, "wb") as file:
        subprocess.run(
            command,
            cwd=config.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=True,
        )
