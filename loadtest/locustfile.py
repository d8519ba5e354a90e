"""Locust integration: users who ask for rankings in a closed loop, judged by the SLO.

`python -m loadtest run` sends an open loop and needs no Locust. This command adds Locust's users,
its web UI and its workers on several machines. Without `-H`, it loads the service of var/run:

    locust -f loadtest/locustfile.py --headless -t 60s --users 50 --spawn-rate 10

Each user waits for its answer, pauses for about a second, and asks again, so the rate is about that
of the users.

Locust groups the answers by their rung, which says how complete an answer is. A headless run ends
with one of three exit codes. 0: its requests held the SLO. 1: they did not. 2: the load generator
was late, or there was no request.
"""

from __future__ import annotations

import logging
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from locust import User, between, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtest.generator.bodies import make_bodies
from loadtest.generator.connections import Connections
from loadtest.generator.dispatcher import Dispatcher
from loadtest.generator.ids import find_ids
from loadtest.measure.measure import milliseconds
from loadtest.measure.service import Ended, read_answer
from loadtest.measure.tally import bucket_ms, entry_name, judge_entries
from loadtest.measure.verdict import EXIT_CODES, REMEDY, Verdict
from loadtest.targets.running import running_url
from loadtest.workload.profiles import load_profile, load_slo
from serve.contract.errors import TabrankError

# Locust's own buckets would round 104.9 ms to 100 ms, and so hide a p99 above its limit.
locust.stats.bucket_response_time = bucket_ms


class RequestError(Exception):
    """Failed request, as Locust lists it among its exceptions."""


class ClosedLoopUser(User):  # type: ignore[misc]  # Locust is untyped to mypy
    """Waits for its answer, pauses for about a second, and asks again."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        """Prepare the user's own connection."""
        self._connections = Connections(self.host)
        read = partial(read_answer, num_candidates=self.environment.candidates)
        self._dispatcher = Dispatcher(self._connections.exchange, read, self._ended)

    @task  # type: ignore[untyped-decorator]
    def rank(self) -> None:
        """Ask for one ranking and wait for its answer."""
        body = random.choice(self.environment.bodies)
        self._dispatcher.send(self._connections.prepare(body))

    def on_stop(self) -> None:
        """Close the connection."""
        self._connections.close()

    def _ended(self, ended: Ended) -> None:
        self.environment.events.request.fire(
            request_type="POST",
            name=entry_name(ended.outcome),
            response_time=ended.latency_ms,
            response_length=ended.num_bytes,
            exception=None if ended.outcome.ok else RequestError(ended.outcome.name),
            context={},
        )


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: Any) -> None:
    """Add the tabrank options."""
    for name, default, told in (
        ("--log", "var/log", "log folder that supplies viewers and candidates"),
        ("--ids", "", "JSON file of viewers and candidates, used instead of a log"),
        ("--slo", "", "TOML file of limits that replace the shipped ones"),
    ):
        parser.add_argument(name, default=default, help=told, include_in_web_ui=False)


def log_verdict(environment: Any, **_: Any) -> Verdict:
    """Log and return the verdict on a test; the web UI shows it among its logs."""
    measured, verdict, reasons = judge_entries(environment.stats.entries.values(), environment.slo)
    runner = environment.runner
    if verdict == "not held" and (runner.cpu_warning_emitted or runner.worker_cpu_warning_emitted):
        late = f"Locust had too little CPU and may have been late; {REMEDY}"
        verdict, reasons = "void", [late, *reasons]
    found = ""
    if measured:
        found = f", p90 {milliseconds(measured.p90_ms)}, p99 {milliseconds(measured.p99_ms)}"
        found += f", {measured.errors} of {measured.requests:,} requests failed"
    logging.info("SLO %s%s", verdict, "; ".join(["", *reasons]) if reasons else found)
    return verdict


def end(environment: Any, **_: Any) -> None:
    """Set the exit code by the verdict.

    A master that a signal ended first gathers the reports of its workers.
    """
    if isinstance(environment.runner, MasterRunner):
        environment.runner.quit()
    environment.process_exit_code = EXIT_CODES[log_verdict(environment)]


@events.init.add_listener  # type: ignore[untyped-decorator]
def set_up(environment: Any, runner: Any, web_ui: Any = None, **_: Any) -> None:
    """Prepare this process for its tests; exit with 2 if an option is unusable."""
    options = environment.parsed_options
    # Locust's start takes a second. Without this call `--run-time` would include it.
    gevent.get_hub().loop.update_now()
    try:
        environment.slo = load_slo(Path(options.slo) if options.slo else None)
        ids, profile = find_ids(
            Path(options.ids) if options.ids else None,
            Path(options.log),
            load_profile("headline"),
            partial(print, file=sys.stderr),
        )
        environment.candidates, environment.bodies = profile.candidates, make_bodies(ids, profile)
        if not isinstance(runner, WorkerRunner):
            environment.host = running_url(environment.host, "--host")
    except TabrankError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if options.headless and not isinstance(runner, WorkerRunner):
        # Any earlier hook would miss the last reports of the workers.
        environment.events.quitting.add_listener(end)
    if web_ui:
        environment.events.test_stop.add_listener(log_verdict)
