"""Locust integration: the load of a profile as a FastHttpUser.

`python -m loadtest run` runs this class in its own process. It also works with Locust alone:

    locust -f loadtest/locustfile.py -H http://127.0.0.1:8000 --headless -t 60s --profile headline

With `--processes`, or `--master` and `--worker`, each worker gets one dispatcher and an equal share
of the rate, whatever `--users` is. Response times count from the scheduled start. Locust groups the
answers by their rung.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

import locust.stats
import numpy as np
from locust import FastHttpUser, LoadTestShape, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner

from loadtest.generator.bodies import make_bodies
from loadtest.generator.connections import Connections
from loadtest.generator.dispatcher import Dispatcher, arrivals
from loadtest.generator.ids import find_ids
from loadtest.measure.service import PATH, Ended, read_answer
from loadtest.workload.profiles import SEED, Block, Profile, blocks, load_profile, load_slo
from serve.contract.errors import TabrankError

BLOCK_S = 10.0


def bucket_response_time(ms: float) -> float:
    """Round a response time up, to 0.1 ms, or to 1 ms above a second.

    It replaces Locust's own buckets, which turn 104.9 ms into 100. With these buckets Locust's
    counts are exact at a limit in whole milliseconds.
    """
    return math.ceil(ms) if ms > 1000 else math.ceil(ms * 10) / 10


locust.stats.bucket_response_time = bucket_response_time


@dataclass(frozen=True)
class LocustLoad:
    """The load that one Locust process sends, set as `load` of its environment.

    `on_end` is called with each request that ended.
    """

    profile: Profile
    bodies: list[bytes]
    blocks: Iterable[Block]
    on_end: Callable[[Ended], None]


class RequestError(Exception):
    """Exception that Locust shows for a failed request."""


class RankUser(FastHttpUser):  # type: ignore[misc]  # Locust is untyped to mypy
    """Dispatcher of this process as a Locust user: one object sends the load of all users."""

    @task  # type: ignore[untyped-decorator]
    def dispatch(self) -> None:
        """Send the environment's load, then stop."""
        load: LocustLoad = self.environment.load
        read = partial(read_answer, num_candidates=load.profile.candidates)
        rng = np.random.default_rng([SEED, self.environment.runner.worker_index])
        with closing(Connections(self.host)) as connections:
            dispatcher = Dispatcher(connections.exchange, read, self._ended)
            requests = cycle([connections.prepare(body) for body in load.bodies])
            dispatcher.run(arrivals(self._share_rps, load.blocks, rng), requests)
        raise StopUser

    def _share_rps(self) -> float:
        """Return this process's share of the rate among all current dispatchers."""
        num_dispatchers = getattr(self.environment.parsed_options, "num_dispatchers", 1)
        rate_rps: float = self.environment.load.profile.target_rps
        return rate_rps / num_dispatchers

    def _ended(self, ended: Ended) -> None:
        self.environment.load.on_end(ended)
        ok = ended.outcome.ok
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{PATH} {ended.outcome.name}" if ok else PATH,
            response_time=ended.latency_ms,
            response_length=ended.num_bytes,
            exception=None if ok else RequestError(ended.outcome.name),
            context={},
        )


def lateness_watch(limit_ms: float, num_requests: int) -> Callable[[Ended], None]:
    """Return a function that logs a warning when the dispatcher is late over that many requests.

    The response times are then not those of the service.
    """
    late_ms: list[float] = []

    def watch(ended: Ended) -> None:
        late_ms.append(ended.late_ms)
        if len(late_ms) >= num_requests:
            p99_ms = float(np.percentile(late_ms, 99))
            late_ms.clear()
            if p99_ms > limit_ms:
                logging.warning("the load generator is late (p99 %.1f ms): use more --processes", p99_ms)

    return watch


class OneDispatcherEach(LoadTestShape):  # type: ignore[misc]
    """Load shape with one user per worker, until `--run-time` or until stopped.

    It also sends the number of dispatchers to the workers, which divide the rate by it.
    """

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users, and the number of users to start per second."""
        options = self.runner.environment.parsed_options
        if options.run_time and self.get_run_time() >= options.run_time:
            return None
        workers = self.runner.worker_count if isinstance(self.runner, MasterRunner) else 1
        options.num_dispatchers = max(1, workers)
        return options.num_dispatchers, options.num_dispatchers


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: Any) -> None:
    """Add the tabrank options. Locust's own `--profile` names the load profile."""
    group = parser.add_argument_group("tabrank")
    group.add_argument("--log", default="var/log", help="log folder that supplies viewers and candidates")
    group.add_argument("--ids", default=None, help="JSON file of viewers and candidates, instead of a log")
    group.add_argument("--rps", type=float, default=None, help="requests per second of all workers together")


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, runner: Any, **_: Any) -> None:
    """Build the load of this process from the command line; a master sends no load."""
    if isinstance(runner, MasterRunner):
        return
    options = environment.parsed_options
    try:
        profile = load_profile(options.profile or "headline", target_rps=options.rps)
        file = Path(options.ids) if options.ids else None
        ids, profile = find_ids(file, Path(options.log), profile, partial(print, file=sys.stderr))
        bodies = make_bodies(ids, profile)
    except TabrankError as error:
        sys.exit(str(error))
    watch = lateness_watch(load_slo().generator_late_ms_p99, round(profile.target_rps * BLOCK_S))
    # The shape repeats until Locust stops the run.
    shaped = chain.from_iterable(repeat(blocks(profile.shape)))
    environment.load = LocustLoad(profile, bodies, shaped if profile.shape else repeat(Block(BLOCK_S)), watch)
