"""Read the service's Prometheus pages, and derive rates, latency, shares and memory from them."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from serve.contract.metric_catalog import BOUNDS_S, exported
from serve.operate.host.state import get
from serve.operate.status.report import Counted, Memory, Traffic

RANKINGS = exported("tabrank_rankings")
LATENCY = exported("tabrank_latency_seconds") + "_bucket"
# Records of /v1/events by what became of them: the kinds that Ingest counts. A replica also counts
# those that it rejects itself, which Ingest never sees.
TAKEN, REJECTED = exported("tabrank_records"), exported("tabrank_records_rejected")
ACCEPTED = ("event", "viewer", "candidate", "forget")
KINDS = {"accepted": ACCEPTED, "duplicate": ("duplicate",), "rejected": ("rejected",)}
# Requests that reached a replica. Ray Serve's label `status_code` has the status.
REQUESTS = "ray_serve_num_http_requests_total"
# Answers that clients got. HAProxy's label `code` has the class of their status, such as 5xx.
ANSWERS = "haproxy_frontend_http_responses_total"
# Answers by HAProxy's backend, and the name of the backend for paths that belong to no application.
OF_BACKENDS, NOWHERE = "haproxy_backend_http_responses_total", "default_backend"
# The routes of callers; other requests are those of probes, operators and scanners.
ROUTES = ("/v1/rank", "/v1/events")
# Answers by status, and refusals because a replica was full. A replica reports both in one call.
ANSWERED = exported("tabrank_http_server_request_duration_seconds") + "_count"
REFUSED = exported("tabrank_refused_seconds") + "_count"
STATUS = "http_response_status_code"
REPLICA = "WorkerId"
# The memory that all processes of a node use, and the limit of its cgroup.
MEMORY_USED, MEMORY_LIMIT = "ray_node_mem_used", "ray_node_mem_total"
PREFIXES = ("ray_tabrank_", REQUESTS, ANSWERS, OF_BACKENDS, MEMORY_USED, MEMORY_LIMIT + "{")
# Limits how long `status` waits for rates, so that the command stays interactive.
MAX_READ_S = 6.0

# A metric's name and its labels.
Series = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Page:
    """Our series on the metrics pages of all nodes at one time, and the pages that answered."""

    at_s: float
    values: Mapping[Series, float] = field(default_factory=dict)
    urls: frozenset[str] = frozenset()

    def of(self, label: str, *values: str) -> Page:
        """Return the series in which a label has one of these values."""
        wanted = {(label, value) for value in values}
        return Page(self.at_s, {one: n for one, n in self.values.items() if not one[1].isdisjoint(wanted)})

    def all(self, name: str) -> list[float]:
        """Return the values of a metric."""
        return [value for (metric, _), value in self.values.items() if metric == name]

    @property
    def median_ms(self) -> float | None:
        """The p50 of all rankings that its series count; None without any."""
        return _quantile_ms(_grown(Page(0.0), self, LATENCY, "le"), 0.5)


def read_pages(urls: Iterable[str]) -> Page:
    """Return the current pages as one; a node that does not answer adds nothing."""
    texts = {url: get(url)[1].decode(errors="replace") for url in urls}
    answered = frozenset(url for url, text in texts.items() if text)
    return parse("\n".join(texts.values()), time.monotonic(), answered)


def parse(text: str, at_s: float, urls: frozenset[str] = frozenset()) -> Page:
    """Return our series from Prometheus' text format; the values of several nodes are summed."""
    values: defaultdict[Series, float] = defaultdict(float)
    for line in text.splitlines():
        # Parse only what is read: Ray has thousands of series of its own.
        if line.startswith(PREFIXES):
            series, _, value = line.rpartition(" ")
            values[_series(series)] += float(value)
    return Page(at_s, values, urls)


@lru_cache(8192)
def _series(text: str) -> Series:
    """Return the series of a line without its value; cached, because all pages have the same."""
    from prometheus_client.parser import text_string_to_metric_families

    (family,) = text_string_to_metric_families(f"{text} 0\n")
    (sample,) = family.samples
    return sample.name, frozenset(sample.labels.items())


class PageHistory:
    """Recent pages, from which the traffic is derived.

    Each replica reports its counters every `every_s`, so a page may be that old. A rate is exact
    only between two moments at which the same replica's counters moved.
    """

    def __init__(self, every_s: float, read_every_s: float = 0.0) -> None:
        self.every_s, self._read_every_s = every_s, read_every_s
        self._pages: list[Page] = []

    @property
    def is_due(self) -> bool:
        """Return True unless the last page was read within the last `read_every_s`."""
        return not self._pages or time.monotonic() - self._pages[-1].at_s >= self._read_every_s

    def add(self, page: Page) -> None:
        """Add a page and drop those that are too old."""
        keep_s = max(10.0, 3 * self.every_s, 4 * self._read_every_s)
        self._pages = [old for old in self._pages if page.at_s - old.at_s <= keep_s] + [page]

    def fill(self, urls: list[str]) -> None:
        """Read pages until each replica has reported twice, for at most `MAX_READ_S`."""
        wait_s = min(2.5 * self.every_s, MAX_READ_S) if urls else 0.0
        deadline = time.monotonic() + wait_s
        self.add(read_pages(urls))
        while time.monotonic() < deadline:
            time.sleep(wait_s / 12)
            self.add(read_pages(urls))

    def traffic(self) -> Traffic | None:
        """Return the traffic, or None if no page counts rankings."""
        before, after = self._comparable[0], self._pages[-1]
        if not any(name == RANKINGS for name, _ in after.values):
            return None
        within, window_s = _grown(before, after, LATENCY, "le"), round(after.at_s - before.at_s, 3)
        names = {dict(labels).get("application", "") for name, labels in after.values if name == REQUESTS}
        return Traffic(
            **_counted(before, after),
            window_s=window_s,
            rate_rps=round(self._rate_rps(), 3),
            p50_ms=_quantile_ms(within, 0.5),
            p90_ms=_quantile_ms(within, 0.9),
            p99_ms=_quantile_ms(within, 0.99),
            records_rps=self._records_rps(),
            applications={
                name: Counted(**_counted(before.of("application", name), after.of("application", name)))
                for name in sorted(names)
            },
        )

    @property
    def _comparable(self) -> list[Page]:
        """The pages for which all nodes of the newest page answered.

        If a node had not answered before, its counters would seem to have grown from 0.
        """
        return [page for page in self._pages if page.urls >= self._pages[-1].urls]

    @property
    def is_empty(self) -> bool:
        """True if no node's page had a series that is read here."""
        return all(name in (ANSWERS, OF_BACKENDS) for page in self._pages for name, _ in page.values)

    def memory(self) -> Memory:
        """Return the memory of the fullest node on the newest page that has it."""
        for page in reversed(self._pages):
            nodes = [
                (page.values.get((MEMORY_USED, labels), 0.0), limit, dict(labels).get("ip"))
                for (name, labels), limit in page.values.items()
                if name == MEMORY_LIMIT and limit
            ]
            if nodes:
                used, limit, node = max(nodes, key=lambda one: one[0] / one[1])
                return Memory(round(used) >> 20, round(limit) >> 20, node)
        return Memory()

    def _records_rps(self) -> dict[str, float]:
        """Return the rates of records by what became of them; empty if no page counts any."""
        if not self._pages[-1].all(REJECTED):
            return {}
        rates = {name: self._rate_rps(TAKEN, *kinds) for name, kinds in KINDS.items()}
        rates["rejected"] += self._rate_rps(REJECTED)
        return {name: round(rate, 3) for name, rate in rates.items()}

    def _rate_rps(self, name: str = RANKINGS, *kinds: str) -> float:
        """Return the sum of the replicas' rates, each between its first and last moved counter.

        With `kinds`, only series with one of these values of the label `kind` count. For a counter
        that moved only once, the growth over all pages counts.
        """
        pages, rate = [page.of("kind", *kinds) if kinds else page for page in self._comparable], 0.0
        steps = [(now.at_s, _grown(was, now, name, REPLICA)) for was, now in itertools.pairwise(pages)]
        window_s = pages[-1].at_s - pages[0].at_s
        for replica in _grown(pages[0], pages[-1], name, REPLICA):
            (since, first), *later = [(at_s, grown[replica]) for at_s, grown in steps if replica in grown]
            rate += sum(count for _, count in later) / (later[-1][0] - since) if later else first / window_s
        return rate


def _grown(before: Page, after: Page, name: str, label: str) -> dict[str, float]:
    """Return the growth of a counter by a label's value; a counter that fell has started again."""
    grown: defaultdict[str, float] = defaultdict(float)
    for series, value in after.values.items():
        if series[0] == name:
            was = before.values.get(series, 0.0)
            grown[dict(series[1]).get(label, "")] += value - was if value >= was else value
    return {key: value for key, value in grown.items() if value}


def _counted(before: Page, after: Page) -> dict[str, Any]:
    """Return the fields of `Counted` between two pages."""
    grown = partial(_grown, before, after)
    rungs, statuses = grown(RANKINGS, "rung"), grown(REQUESTS, "status_code")
    rankings = sum(rungs.values())
    failed = {status: count for status, count in statuses.items() if status.startswith("5")}
    # If no replica is there, HAProxy itself answers 5xx. Its counters are seconds ahead of the
    # reports of replicas.
    lost = max(grown(ANSWERS, "code").get("5xx", 0.0) - sum(failed.values()), 0.0)
    failed |= {"unattributed": lost} if lost else {}
    unrouted = grown(OF_BACKENDS, "proxy").get(NOWHERE, 0.0)
    total = sum(statuses.values()) + lost + unrouted
    # If Ray's own proxy is used, it counts such requests among the others, without an application.
    nowhere = before.of("application", ""), after.of("application", "")
    unrouted += _grown(*nowhere, REQUESTS, "status_code").get("404", 0.0)
    overload = sum(grown(REFUSED, "").values())
    limited = max(grown(ANSWERED, STATUS).get("429", 0.0) - overload, 0.0)
    of_callers = before.of("http_route", *ROUTES), after.of("http_route", *ROUTES)
    calls = _grown(*of_callers, ANSWERED, STATUS)
    known = grown(exported("tabrank_candidate_lookups"), "known")
    viewers = grown(exported("tabrank_viewer_lookups"), "known")
    has_context = grown(exported("tabrank_live_rankings"), "has_context")
    ages_s = after.all(exported("tabrank_freshness_seconds"))
    candidates, asked = sum(known.values()), sum(has_context.values())
    mistaken = {status: n for status, n in calls.items() if status.startswith("4") and status != "429"}
    return {
        "freshness_ms": max((round(age_s * 1e3, 3) for age_s in ages_s), default=None),
        "rankings": round(rankings),
        "rungs": _shares(rungs, rankings),
        "reasons": _shares(grown(exported("tabrank_degraded"), "reason"), rankings),
        "arms": _shares(grown(RANKINGS, "arm"), rankings),
        "requests": round(total),
        "error_share": _share(sum(failed.values()), total),
        "refused_share": _share(statuses.get("429", 0.0), total),
        "unrouted_share": _share(unrouted, total),
        "overload_share": _share(overload, total),
        "limited_share": _share(limited, total),
        "errors": _shares(failed, total),
        "calls": round(sum(calls.values())),
        "client_error_share": _share(sum(mistaken.values()), sum(calls.values())),
        "client_errors": _shares(mistaken, sum(calls.values())),
        "steady_rps": sum(after.all(exported("tabrank_steady_rankings_per_second"))),
        "candidates": round(candidates),
        "unknown_share": _share(known.get("false", 0.0), candidates),
        "viewers": round(sum(viewers.values())),
        "unknown_viewer_share": _share(viewers.get("false", 0.0), sum(viewers.values())),
        "model_rankings": round(asked),
        "no_context_share": _share(has_context.get("false", 0.0), asked),
    }


def _share(count: float, total: float) -> float | None:
    return min(count / total, 1.0) if total else None


def _shares(counts: Mapping[str, float], total: float) -> dict[str, float]:
    return {key: count / total for key, count in sorted(counts.items())} if total else {}


def _quantile_ms(within: Mapping[str, float], quantile: float) -> float | None:
    """Return a quantile as Prometheus' histogram_quantile does: linear between the bounds.

    A quantile above the last bound is reported as that bound.
    """
    if not within.get("+Inf"):
        return None
    # A series appears with its first count, so a bound that is missing has counted nothing.
    bounds = [(float(bound) * 1e3, within.get(bound, 0.0)) for bound in (*map(str, BOUNDS_S), "+Inf")]
    wanted = quantile * bounds[-1][1]
    pairs = itertools.pairwise([(0.0, 0.0), *bounds])
    (low, below), (high, count) = next(pair for pair in pairs if pair[1][1] >= wanted)
    if math.isinf(high):
        return round(low, 3)
    return round(low + (high - low) * (wanted - below) / (count - below), 3)
