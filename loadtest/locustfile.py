"""Locust integration: an open loop and a closed loop of rankings, judged by the SLO.

`python -m loadtest run` needs no Locust. Without `-H`, both users load the service of var/run:

    locust -f loadtest/locustfile.py --headless -t 60s --profile headline
    locust -f loadtest/locustfile.py ClosedLoopUser --headless -t 60s --users 50 --spawn-rate 10

- OpenLoopUser sends the rate of the profile, however slow the answers are, whatever `--users` is.
  Response times count from the scheduled start. It is the default of a headless run. Each worker of
  `--processes`, or of `--master` and `--expect-workers`, has one and an equal share of the rate.
- ClosedLoopUser waits for its answer, thinks for about a second, and asks again. `--users` and
  `--spawn-rate` count. It is the default of the web UI, where the user classes can be picked.

Locust groups the answers by their rung. The exit code of a headless run is 0 if all its requests
held the SLO, 1 if not, 2 if the generator was late or there was no request.
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

BLOCK_S = 10.0
# Locust's own buckets turn 104.9 ms into 100.
locust.stats.bucket_response_time = bucket_ms


class RequestError(Exception):
    """Exception that Locust shows for a failed request."""


class RankUser(FastHttpUser):  # type: ignore[misc]  # Locust is untyped to mypy
    """User that asks for rankings of the environment's load and reports each end to Locust."""

    abstract = True

    def on_start(self) -> None:
        """Stop at once where there is no load: the web UI has named an unusable one."""
        if self.environment.load is None:
            raise StopUser

    def dispatcher(self, connections: Connections) -> Dispatcher:
        """Return a dispatcher on these connections."""
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
    """Sends the rate of the profile, whatever the number of users: one user a process sends all."""

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
    """Waits for its answer, thinks for a second, and asks again: the number of users counts."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        """Prepare the user's own connection."""
        # Locust calls `on_stop` even if the load cannot be used.
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
    """Spawns as many closed-loop users as asked for, or one open-loop user a worker; not both.

    The web UI has ticked both classes at first, and asks for a number of users: closed-loop users.
    """

    def __init__(self, worker_nodes: list[Any], user_classes: list[type[RankUser]]) -> None:
        self._open = ClosedLoopUser not in user_classes
        super().__init__(worker_nodes, [OpenLoopUser if self._open else ClosedLoopUser])

    def new_dispatch(self, target_user_count: int, spawn_rate: float, user_classes: Any = None) -> None:
        """Set the number of users, and the number to start per second."""
        if self._open:
            target_user_count = spawn_rate = len(self._worker_nodes)
        super().new_dispatch(target_user_count, spawn_rate, user_classes)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: Any) -> None:
    """Add the tabrank options. Locust's own `--profile` names the load profile."""
    group = parser.add_argument_group("tabrank")
    group.add_argument("--log", default="var/log", help="log folder that supplies viewers and candidates")
    group.add_argument("--ids", default="", help="JSON file of viewers and candidates, instead of a log")
    help_rps = "OpenLoopUser: requests per second of all workers together, instead of the profile's"
    group.add_argument("--rps", type=float, default=0.0, help=help_rps)
    group.add_argument("--slo", default="", help="TOML file of limits that replace the shipped ones")
    # The web UI names both users, so that one can be picked.
    parser.set_defaults(class_picker=True)


@lru_cache(maxsize=1)
def requests_of(profile: str, rps: float, ids: str, log: str) -> tuple[Profile, list[bytes]]:
    """Return the profile and the bodies of its requests; TabrankError if an input is unusable."""
    loaded = load_profile(profile, target_rps=rps or None)
    used, loaded = find_ids(Path(ids) if ids else None, Path(log), loaded, partial(print, file=sys.stderr))
    return loaded, make_bodies(used, loaded)


class Run:
    """Wiring of one Locust process: the load that it sends, and the verdict on what came back.

    The `load` of its environment is the run once it is prepared, and None before.
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
            # Workers get these from their master, but not Locust's own `profile`.
            options.named_profile = options.profile or "headline"
            options.num_dispatchers = max(1, getattr(runner, "worker_count", 1))
        if not isinstance(runner, MasterRunner):
            name = getattr(options, "named_profile", options.profile or "headline")
            self.profile, self.bodies = requests_of(name, options.rps, options.ids, options.log)
            self._environment.load = self

    def start(self, **_: Any) -> None:
        """Prepare a test; without a usable load nothing is sent."""
        try:
            self.prepare()
        except TabrankError as error:
            logging.error("%s", error)

    def send(self, data: dict[str, Any], **_: Any) -> None:
        """Add the requests since the last report to a worker's report to its master."""
        data["ended"] = self.tally.take()

    def receive(self, data: dict[str, Any], **_: Any) -> None:
        """Add the requests of a worker's report."""
        self.tally.add(data["ended"])

    def log_verdict(self, **_: Any) -> Verdict:
        """Log and return the verdict on the test; the web UI shows it among its logs."""
        measured, verdict, reasons = self.tally.judged(self._slo)
        runner = self._environment.runner
        if verdict == "not held" and (runner.cpu_warning_emitted or runner.worker_cpu_warning_emitted):
            verdict, reasons = "void", [f"Locust needs more than a core; {REMEDY}", *reasons]
        found = ""
        if measured:
            found = f", p90 {milliseconds(measured.p90_ms)}, p99 {milliseconds(measured.p99_ms)}"
            found += f", {measured.errors} of {measured.requests:,} requests failed"
        logging.info("SLO %s%s", verdict, "; ".join(["", *reasons]) if reasons else found)
        return verdict

    def end(self, **_: Any) -> None:
        """Exit by the verdict; a master that a signal ended gathers the reports first."""
        if isinstance(self._environment.runner, MasterRunner):
            self._environment.runner.quit()
        self._environment.process_exit_code = EXIT_CODES[self.log_verdict()]


@events.init.add_listener  # type: ignore[untyped-decorator]
def set_up(environment: Any, runner: Any, web_ui: Any = None, **_: Any) -> None:
    """Prepare this process for its tests; exit with 2 if an option is unusable."""
    options, hooks = environment.parsed_options, environment.events
    # Otherwise `--run-time` would count from before Locust's start, which takes a second.
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
        # Before that, the last reports of workers are missing.
        hooks.quitting.add_listener(run.end)
        if not options.user_classes:
            environment.user_classes = [OpenLoopUser]
    if web_ui:
        hooks.test_stop.add_listener(run.log_verdict)
        logging.info("ClosedLoopUser: %s", ClosedLoopUser.__doc__)
        logging.info("OpenLoopUser: %s", OpenLoopUser.__doc__)
    elif options.num_users and ClosedLoopUser not in environment.user_classes:
        logging.warning("OpenLoopUser ignores --users; name ClosedLoopUser to have so many users")
