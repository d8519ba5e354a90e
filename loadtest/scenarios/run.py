"""One run: Locust in this process, from a profile to what it measured."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import gevent
import locust.stats
from locust.env import Environment
from locust.html import get_html_report

from loadtest.generator.dispatcher import allow_open_files
from loadtest.locustfile import Load, RankUser
from loadtest.measure.measure import Record, Requests
from loadtest.measure.progress import show_progress
from loadtest.workload.profiles import Profile


@dataclass(frozen=True)
class Run:
    """All requests of a run, the measured window from 0 on, and Locust's own report page."""

    requests: Requests
    locust_html: str


def run_load(
    profile: Profile, url: str, bodies: list[bytes], beside: Sequence[Callable[[], None]] = ()
) -> Run:
    """Send a profile's load to the service at `url`, and wait for its last answer.

    What is to go on `beside` it begins with it, each in a greenlet of its own, and is waited for too.
    """
    allow_open_files()
    record = Record()

    environment = Environment(user_classes=[RankUser], host=url)
    environment.load = Load(profile, bodies, profile.blocks, partial(record.keep, zero_s=profile.warmup_s))
    runner = environment.create_local_runner()
    helpers = [
        gevent.spawn(show_progress, record, profile.warmup_s, sys.stderr),
        gevent.spawn(locust.stats.stats_history, runner),
    ]
    # What was made for the run stays until its end; without it, a collection takes microseconds.
    gc.collect()
    gc.freeze()
    try:
        runner.start(1, spawn_rate=1, wait=True)
        others = [gevent.spawn(other) for other in beside]
        helpers += others
        runner.spawning_greenlet.join()
        gevent.joinall(others, raise_error=True)
    finally:
        gevent.killall(helpers)
        runner.quit()
        gc.unfreeze()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return Run(record.requests(), get_html_report(environment, show_download_link=False))
