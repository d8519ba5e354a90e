"""What the service answered between two looks at its Prometheus pages: rate, latency quantiles, rungs."""

from __future__ import annotations

import itertools
import math
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "ray_tabrank_"
RANKINGS, LATENCY = "ray_tabrank_rankings_total", "ray_tabrank_latency_ms_total"
FRESHNESS, REASONS = "ray_tabrank_freshness_ms", "ray_tabrank_degraded_total"
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
        except (OSError, ValueError):
            continue
    return parse("\n".join(texts), time.monotonic())


def parse(text: str, at_s: float) -> Page:
    """Our series in Prometheus' text format; of the same series on two nodes the sum."""
    from prometheus_client.parser import text_string_to_metric_families

    ours = "\n".join(line for line in text.splitlines() if line.startswith(PREFIX))  # Ray's own are thousands
    values: Counter[Series] = Counter()
    for family in text_string_to_metric_families(ours + "\n"):
        for sample in family.samples:
            values[sample.name, frozenset(sample.labels.items())] += sample.value
    return Page(at_s, values)


def watch(
    urls: list[str], seconds: float, *, read: Callable[[Iterable[str]], Page] = read_pages
) -> tuple[Page, Page]:
    """Two pages so far apart."""
    first = read(urls)
    time.sleep(seconds)
    return first, read(urls)


def traffic(before: Page, after: Page) -> Traffic | None:
    """What was answered between two pages; None where nobody counts rankings."""
    if not any(name == RANKINGS for name, _ in after.values):
        return None
    seconds = after.at_s - before.at_s
    total = sum(_grown(before, after, RANKINGS, "rung").values())
    p50, p90, p99 = (_quantile(_grown(before, after, LATENCY, "le"), q) for q in QUANTILES)
    ages = [value for (name, _), value in after.values.items() if name == FRESHNESS]
    return Traffic(
        seconds,
        total / seconds if seconds > 0 else 0.0,
        p50,
        p90,
        p99,
        _shares(_grown(before, after, RANKINGS, "rung"), total),
        _shares(_grown(before, after, REASONS, "reason"), total),
        _shares(_grown(before, after, RANKINGS, "arm"), total),
        max(ages, default=None),
    )


def _grown(before: Page, after: Page, name: str, label: str) -> dict[str, float]:
    """By how much a counter grew, by a label's value; a series that fell began anew."""
    grown: Counter[str] = Counter()
    for series, value in after.values.items():
        if series[0] == name:
            was = before.values.get(series, 0.0)
            grown[dict(series[1]).get(label, "")] += value - was if value >= was else value
    return {key: value for key, value in grown.items() if value}


def _shares(counts: Mapping[str, float], total: float) -> dict[str, float]:
    return {key: count / total for key, count in sorted(counts.items())} if total else {}


def _quantile(within: Mapping[str, float], quantile: float) -> float | None:
    """As Prometheus' histogram_quantile: linear between bounds; the last bound where it lies above."""
    from serve.metrics import BOUNDS_MS

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


def plain(found: Traffic | None) -> dict[str, Any] | None:
    """For JSON."""
    if found is None:
        return None
    told = dict(vars(found))
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in told.items()}
