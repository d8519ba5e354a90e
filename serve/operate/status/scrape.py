"""What the service answered between two looks at its Prometheus pages: rate, latency quantiles, rungs."""

from __future__ import annotations

import http.client
import itertools
import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "ray_tabrank_"
RANKINGS, LATENCY = "ray_tabrank_rankings_total", "ray_tabrank_latency_ms_total"
FRESHNESS, REASONS = "ray_tabrank_freshness_ms", "ray_tabrank_degraded_total"
REPLICA = "WorkerId"  # Ray's label of the process
MOST_S = 6.0  # that one look may take
QUANTILES = (0.5, 0.9, 0.99)

Series = tuple[str, frozenset[tuple[str, str]]]  # a metric's name, and its labels


@dataclass(frozen=True)
class Page:
    """The series of ours on the pages of all nodes, at one time."""

    at_s: float
    values: Mapping[Series, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """What was answered between two pages; None where nothing tells."""

    seconds: float
    rate_rps: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    rungs: Mapping[str, float]  # the share of each
    reasons: Mapping[str, float]  # the share of rankings by why they were degraded
    arms: Mapping[str, float]  # the share of each
    freshness_ms: float | None  # of the stalest replica


def read_pages(urls: Iterable[str]) -> Page:
    """The pages as they are now; a node that does not answer counts nothing."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    texts = []
    for url in urls:
        try:
            with direct.open(url, timeout=2.0) as response:
                texts.append(response.read().decode())
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return parse("\n".join(texts), time.monotonic())


def parse(text: str, at_s: float) -> Page:
    """Our series in Prometheus' text format; of the same series on two nodes the sum."""
    from prometheus_client.parser import text_string_to_metric_families

    ours = "\n".join(line for line in text.splitlines() if line.startswith(PREFIX))  # Ray's own are thousands
    values: defaultdict[Series, float] = defaultdict(float)
    for family in text_string_to_metric_families(ours + "\n"):
        for sample in family.samples:
            values[sample.name, frozenset(sample.labels.items())] += sample.value
    return Page(at_s, values)


class Looks:
    """The pages of the last ten seconds, and what was answered meanwhile.

    Each replica hands its counters on every `every_s`: a page holds what was true up to so long ago, and a rate is
    right only between two moments at which the same replica's counters moved.
    """

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._pages: list[Page] = []

    def add(self, page: Page) -> None:
        """One more look."""
        keep_s = max(10.0, 3 * self.every_s)
        self._pages = [old for old in self._pages if page.at_s - old.at_s <= keep_s] + [page]

    def until_known(self, urls: list[str], *, read: Callable[[Iterable[str]], Page] = read_pages) -> None:
        """Look until every replica has handed on twice; where it does so seldom, not as long."""
        wait_s = min(2.5 * self.every_s, MOST_S)
        deadline = time.monotonic() + wait_s
        self.add(read(urls))
        while time.monotonic() < deadline:
            time.sleep(wait_s / 12)
            self.add(read(urls))

    def traffic(self) -> Traffic | None:
        """What was answered; None where nobody counts rankings."""
        after = self._pages[-1]
        if not any(name == RANKINGS for name, _ in after.values):
            return None
        before = self._pages[0]
        rungs = _grown(before, after, RANKINGS, "rung")
        total = sum(rungs.values())
        p50, p90, p99 = (_quantile(_grown(before, after, LATENCY, "le"), q) for q in QUANTILES)
        ages = [value for (name, _), value in after.values.items() if name == FRESHNESS]
        return Traffic(
            after.at_s - before.at_s,
            self._rate_rps(),
            p50,
            p90,
            p99,
            _shares(rungs, total),
            _shares(_grown(before, after, REASONS, "reason"), total),
            _shares(_grown(before, after, RANKINGS, "arm"), total),
            max(ages, default=None),
        )

    def _rate_rps(self) -> float:
        """The sum of what each replica answered between the first and the last moment that its counters moved."""
        moved: dict[str, list[tuple[float, float]]] = {}  # by replica: when, and what it had answered by then
        for before, after in itertools.pairwise(self._pages):
            now = _grown(Page(0.0), after, RANKINGS, REPLICA)
            for replica, count in _grown(before, after, RANKINGS, REPLICA).items():
                if count:
                    moved.setdefault(replica, []).append((after.at_s, now[replica]))
        rate = 0.0
        for moments in moved.values():
            (first_s, first), (last_s, last) = moments[0], moments[-1]
            if last_s > first_s and last >= first:
                rate += (last - first) / (last_s - first_s)
        return rate


def _grown(before: Page, after: Page, name: str, label: str) -> dict[str, float]:
    """By how much a counter grew, by a label's value; a series that fell began anew."""
    grown: defaultdict[str, float] = defaultdict(float)
    for series, value in after.values.items():
        if series[0] == name:
            was = before.values.get(series, 0.0)
            grown[dict(series[1]).get(label, "")] += value - was if value >= was else value
    return {key: value for key, value in grown.items() if value}


def _shares(counts: Mapping[str, float], total: float) -> dict[str, float]:
    return {key: count / total for key, count in sorted(counts.items())} if total else {}


def _quantile(within: Mapping[str, float], quantile: float) -> float | None:
    """As Prometheus' histogram_quantile: linear between bounds; the last bound where it lies above."""
    from serve.contract.metric_catalog import BOUNDS_MS

    if not within.get("+Inf"):
        return None
    # A series comes with its first count, so a bound that is missing has none.
    bounds = [(float(bound), within.get(str(bound), 0.0)) for bound in (*BOUNDS_MS, "+Inf")]
    wanted = quantile * bounds[-1][1]
    for (low, below), (high, count) in itertools.pairwise([(0.0, 0.0), *bounds]):
        if count >= wanted:
            if math.isinf(high):
                return low
            return low + (high - low) * (wanted - below) / (count - below) if count > below else high
    return None


def plain(found: Traffic) -> dict[str, Any]:
    """For JSON."""
    told = dict(vars(found))
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in told.items()}
