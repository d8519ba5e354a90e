"""Locust integration: an open loop and a closed loop of rankings, judged by the SLO.

`python -m loadtest run` needs no Locust. These commands use it. Without `-H`, they load the service
of var/run:

    locust -f loadtest/locustfile.py --headless -t 60s --profile headline
    locust -f loadtest/locustfile.py ClosedLoopUser --headless -t 60s --users 50 --spawn-rate 10

- OpenLoopUser sends requests at the rate of the profile, however slow the answers are. It ignores
  `--users`. Response times count from the time at which a request was due. It is the default of a
  headless run. With several workers (`--processes`, or `--master` and `--expect-workers`), each
  worker has one such user, which sends an equal share of the rate.
- ClosedLoopUser waits for its answer, pauses for about a second, and asks again. `--users` and
  `--spawn-rate` set the number of users. It is the default of the web UI, where the user classes
  can be picked.

Locust groups the answers by their rung, which says how complete an answer is. A headless run ends
with one of three exit codes. 0: its requests held the SLO. 1: they did not. 2: the load generator
was late, or there was no request.
"""

from __future__ import annotations

import logging
import random
import sys
from contextlib import closing
from functools import lru_cache, partial
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import gevent
import locust.stats
import numpy as np
from locust import FastHttpUser, between, events, task
from locust.dispatch import UsersDispatcher
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtest.generator.bodies import make_bodies
from loadtest.generator.connections import Connections
from loadtest.generator.dispatcher import Dispatcher, arrivals
from loadtest.generator.ids import find_ids
from loadtest.measure.measure import milliseconds
from loadtest.measure.service import PATH, Ended, read_answer
from loadtest.measure.tally import Tally, bucket_ms
from loadtest.measure.verdict import EXIT_CODES, REMEDY, Verdict
from loadtest.targets.running import running_url
from loadtest.workload.profiles import SEED, Block, Profile, blocks, load_profile, load_slo
from serve.contract.errors import TabrankError

# Length of a block of a constant load. Each block reads the process's share of the rate again.
BLOCK_S = 10.0
# Locust's own buckets would round 104.9 ms to 100 ms, and so hide a p99 above its limit.
locust.stats.bucket_response_time = bucket_ms


class RequestError(Exception):
    """Failed request, as Locust lists it among its exceptions."""


class RankUser(FastHttpUser):  # type: ignore[misc]  # Locust is untyped to mypy
    """User that sends the requests of the environment's load and reports each end to Locust."""

    abstract = True

    def on_start(self) -> None:
        """Stop at once if there is no load, because the web UI named an unusable one."""
        if self.environment.load is None:
            raise StopUser

    def dispatcher(self, connections: Connections) -> Dispatcher:
        """Return a dispatcher that sends on these connections."""
        read = partial(read_answer, num_candidates=self.environment.load.profile.candidates)
        return Dispatcher(connections.exchange, read, self._ended)

    def _ended(self, ended: Ended) -> None:
        self.environment.load.tally.keep(ended)
        ok = ended.outcome.ok
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{PATH} {ended.outcome.name}" if ok else PATH,
            response_time=ended.latency_ms,
            response_length=ended.num_bytes,
            exception=None if ok else RequestError(ended.outcome.name),
            context={},
        )


class OpenLoopUser(RankUser):
    """Sends the rate of the profile; one user sends all of it, so the user count is ignored."""

    @task  # type: ignore[untyped-decorator]
    def dispatch(self) -> None:
        """Send the environment's load, then stop."""
        load: Run = self.environment.load
        shape = load.profile.shape
        # The shape repeats until Locust stops the run.
        every = chain.from_iterable(repeat(blocks(shape))) if shape else repeat(Block(BLOCK_S))
        rng = np.random.default_rng([SEED, self.environment.runner.worker_index])
        with closing(Connections(self.host)) as connections:
            requests = cycle([connections.prepare(body) for body in load.bodies])
            self.dispatcher(connections).run(arrivals(self._share_rps, every, rng), requests)
        raise StopUser

    def _share_rps(self) -> float:
        """Return this process's share of the rate among all current dispatchers."""
        num_dispatchers = getattr(self.environment.parsed_options, "num_dispatchers", 1)
        return float(self.environment.load.profile.target_rps / num_dispatchers)


class ClosedLoopUser(RankUser):
    """Waits for its answer, pauses for about a second, and asks again; needs a number of users."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        """Prepare the user's own connection."""
        # The connection exists first, because Locust calls `on_stop` even if the load is unusable.
        self._connections = Connections(self.host)
        super().on_start()
        self._dispatcher = self.dispatcher(self._connections)

    @task  # type: ignore[untyped-decorator]
    def rank(self) -> None:
        """Ask for one ranking and wait for its answer."""
        body = random.choice(self.environment.load.bodies)
        self._dispatcher.send(self._connections.prepare(body))

    def on_stop(self) -> None:
        """Close the connection."""
        self._connections.close()


class OneLoop(UsersDispatcher):  # type: ignore[misc]
    """Spawns either as many closed-loop users as asked for, or one open-loop user per worker.

    If both classes are picked, closed-loop users run. The web UI picks both at first and asks for a
    number of users, which only closed-loop users need.
    """

    def __init__(self, worker_nodes: list[Any], user_classes: list[type[RankUser]]) -> None:
        self._open = ClosedLoopUser not in user_classes
        super().__init__(worker_nodes, [OpenLoopUser if self._open else ClosedLoopUser])

    def new_dispatch(self, target_user_count: int, spawn_rate: float, user_classes: Any = None) -> None:
        """Set the number of users and how many of them start per second."""
        if self._open:
            target_user_count = spawn_rate = len(self._worker_nodes)
        super().new_dispatch(target_user_count, spawn_rate, user_classes)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: Any) -> None:
    """Add the tabrank options. Locust's own `--profile` names the load profile."""
    group = parser.add_argument_group("tabrank")
    group.add_argument("--log", default="var/log", help="log folder that supplies viewers and candidates")
    group.add_argument("--ids", default="", help="JSON file of viewers and candidates, used instead of a log")
    help_rps = "for OpenLoopUser: requests per second of all workers together; overrides the profile"
    group.add_argument("--rps", type=float, default=0.0, help=help_rps)
    group.add_argument("--slo", default="", help="TOML file of limits that replace the shipped ones")
    # The web UI names both users, so that one can be picked.
    parser.set_defaults(class_picker=True)


@lru_cache(maxsize=1)
def requests_of(profile: str, rps: float, ids: str, log: str) -> tuple[Profile, list[bytes]]:
    """Return the profile and the bodies of its requests.

    Raises:
        TabrankError: if an input is unusable.
    """
    loaded = load_profile(profile, target_rps=rps or None)
    used, loaded = find_ids(Path(ids) if ids else None, Path(log), loaded, partial(print, file=sys.stderr))
    return loaded, make_bodies(used, loaded)


class Run:
    """Load that one Locust process sends, and the verdict on the answers.

    `environment.load` is this object once the run is prepared, and None before.
    """

    profile: Profile
    bodies: list[bytes]

    def __init__(self, environment: Any, options: Any) -> None:
        self.tally = Tally()
        self._environment, self._options = environment, options
        self._slo = load_slo(Path(options.slo) if options.slo else None)

    def prepare(self) -> None:
        """Build the load from the options, which the web UI may have changed.

        Raises:
            TabrankError: if an option is unusable.
        """
        options, runner = self._options, self._environment.runner
        self.tally.clear()
        self._environment.load = None
        if not isinstance(runner, WorkerRunner):
            # A master passes these options to its workers, but not Locust's own `profile`.
            options.named_profile = options.profile or "headline"
            options.num_dispatchers = max(1, getattr(runner, "worker_count", 1))
        if not isinstance(runner, MasterRunner):
            name = getattr(options, "named_profile", options.profile or "headline")
            self.profile, self.bodies = requests_of(name, options.rps, options.ids, options.log)
            self._environment.load = self

    def start(self, **_: Any) -> None:
        """Prepare a test; if the load is unusable, log the reason and send nothing."""
        try:
            self.prepare()
        except TabrankError as error:
            logging.error("%s", error)

    def send(self, data: dict[str, Any], **_: Any) -> None:
        """Add the requests since the last report to the report that a worker sends its master."""
        data["ended"] = self.tally.take()

    def receive(self, data: dict[str, Any], **_: Any) -> None:
        """Count the requests of a worker's report."""
        self.tally.add(data["ended"])

    def log_verdict(self, **_: Any) -> Verdict:
        """Log and return the verdict on the test; the web UI shows it among its logs."""
        measured, verdict, reasons = self.tally.judged(self._slo)
        runner = self._environment.runner
        if verdict == "not held" and (runner.cpu_warning_emitted or runner.worker_cpu_warning_emitted):
            verdict, reasons = (
                "void",
                [f"Locust had too little CPU and may have been late; {REMEDY}", *reasons],
            )
        found = ""
        if measured:
            found = f", p90 {milliseconds(measured.p90_ms)}, p99 {milliseconds(measured.p99_ms)}"
            found += f", {measured.errors} of {measured.requests:,} requests failed"
        logging.info("SLO %s%s", verdict, "; ".join(["", *reasons]) if reasons else found)
        return verdict

    def end(self, **_: Any) -> None:
        """Set the exit code by the verdict.

        A master that a signal ended first gathers the reports of its workers.
        """
        if isinstance(self._environment.runner, MasterRunner):
            self._environment.runner.quit()
        self._environment.process_exit_code = EXIT_CODES[self.log_verdict()]


@events.init.add_listener  # type: ignore[untyped-decorator]
def set_up(environment: Any, runner: Any, web_ui: Any = None, **_: Any) -> None:
    """Prepare this process for its tests; exit with 2 if an option is unusable."""
    options, hooks = environment.parsed_options, environment.events
    # Locust's start takes a second. Without this call `--run-time` would include it.
    gevent.get_hub().loop.update_now()
    environment.dispatcher_class = OneLoop
    try:
        run = Run(environment, options)
        run.prepare()
        if not isinstance(runner, WorkerRunner):
            environment.host = running_url(environment.host, "--host")
    except TabrankError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    hooks.test_start.add_listener(run.start)
    if isinstance(runner, WorkerRunner):
        hooks.report_to_master.add_listener(run.send)
        return
    hooks.worker_report.add_listener(run.receive)
    if options.headless:
        # Any earlier hook would miss the last reports of the workers.
        hooks.quitting.add_listener(run.end)
        if not options.user_classes:
            environment.user_classes = [OpenLoopUser]
    if web_ui:
        hooks.test_stop.add_listener(run.log_verdict)
        logging.info("ClosedLoopUser: %s", ClosedLoopUser.__doc__)
        logging.info("OpenLoopUser: %s", OpenLoopUser.__doc__)
    elif options.num_users and ClosedLoopUser not in environment.user_classes:
        logging.warning("OpenLoopUser ignores --users; name ClosedLoopUser on the command line to use it")
