"""Load of a scaling test from a separate process, with its replicas and nodes counted meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.generator.offer import Offer, OfferedLoad, offering
from loadtest.measure.cluster import Look, Watch
from loadtest.measure.timeline import Moment
from loadtest.measure.verdict import listed
from loadtest.report.report import Report
from loadtest.scenarios.run import report_run
from loadtest.workload.profiles import Profile, load_slo

Proof = tuple[Report, Sequence[Moment]]
"""Numbers and verdict of a part of the test, and its timeline."""


@dataclass(frozen=True)
class Load:
    """Running load of a profile."""

    profile: Profile
    url: str
    offer: Offer
    watch: Watch

    def report(self, out: Path) -> Proof:
        """Wait for the end of the load; write its report to `out`, and return it.

        Raises:
            LoadtestError: if the generator failed.
        """
        requests = self.offer.result().requests.counted_from(self.profile.warmup_s)
        return report_run(self.profile, load_slo(), self.url, requests, self.watch.samples, out)


@contextlib.contextmanager
def loading(profile: Profile, url: str, bodies: Sequence[bytes], look: Look) -> Iterator[Load]:
    """Load a service while the block runs; `look` counts its replicas and nodes."""
    load = OfferedLoad(url, bodies, profile.candidates, profile.target_rps, profile.blocks)
    watch = Watch(look, profile.warmup_s, profile.duration_s)
    with offering(load) as offer:
        threading.Thread(target=watch, daemon=True).start()
        yield Load(profile, url, offer, watch)


def failures(found: Mapping[str, Any]) -> list[str]:
    """Return the failed requests of a run as a reason; empty if none failed."""
    if not found["errors"]:
        return []
    return [f"{found['errors']} of {found['requests']} requests failed: {listed(found['error_kinds'])}"]


def after(seconds: float | None) -> str:
    """Return the seconds after an event as text."""
    return "never after" if seconds is None else f"{seconds:g} s after"
