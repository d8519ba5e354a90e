"""Run the load of a profile with Locust in this process, for `run` and other scenarios.

Importing the module patches the standard library for gevent.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from functools import partial

import gevent
import locust.stats
from locust.env import Environment
from locust.html import get_html_report

from loadtest.generator.dispatcher import allow_open_files, show_progress
from loadtest.locustfile import LocustLoad, OpenLoopUser
from loadtest.measure.measure import RequestLog, Requests
from loadtest.workload.profiles import Profile


def run_load(
    profile: Profile, url: str, bodies: list[bytes], background: Sequence[Callable[[], None]] = ()
) -> tuple[Requests, str]:
    """Send a profile's load to the service at `url`, and wait for the last answer.

    Return the requests, with the measured window from 0 on, and Locust's own report page.

    Each function in `background` starts together with the load, in its own greenlet. The run waits
    for the end of all.
    """
    allow_open_files()
    log = RequestLog()

    environment = Environment(user_classes=[OpenLoopUser], host=url)
    environment.load = LocustLoad(profile, bodies, profile.blocks, partial(log.keep, zero_s=profile.warmup_s))
    runner = environment.create_local_runner()
    helpers = [
        gevent.spawn(show_progress, log, profile.warmup_s, sys.stderr),
        gevent.spawn(locust.stats.stats_history, runner),
    ]
    # Freeze the objects made for the run: garbage collections then take microseconds.
    gc.collect()
    gc.freeze()
    try:
        runner.start(1, spawn_rate=1, wait=True)
        others = [gevent.spawn(other) for other in background]
        helpers += others
        runner.spawning_greenlet.join()
        gevent.joinall(others, raise_error=True)
    finally:
        gevent.killall(helpers)
        runner.quit()
        gc.unfreeze()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return log.requests(), get_html_report(environment, show_download_link=False)
