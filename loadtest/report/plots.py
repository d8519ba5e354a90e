"""Plots of load and latency over time, of their distributions, and against the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loadtest.measure.timeline import Moment
from loadtest.workload.profiles import Slo
from serve.report.charts import Axis, Limit, Series, plot

SECOND = Axis("second of the measurement", is_time=True)
# Colour of each percentile on every plot.
PERCENTILES = {"p50": "muted", "p90": "other", "p99": "text"}
HEIGHT = 180
Point = Sequence[Any]
"""Values of x and y; y may be None."""


def distribution(x: str, lines: Mapping[str, Sequence[Point]], limits: Sequence[Point]) -> str:
    """Plot the share that took longer than a time, for each name; empty if no line has a point.

    A line is points of `loadtest.measure.measure.tail`; a limit is a name, a time and a share.
    """
    series = [line(name, points) for name, points in lines.items() if points]
    names, at_ms, shares = zip(*limits, strict=True)
    dots = Series("limit: the line stays below", at_ms, shares, "points", colour="limit", notes=names)
    share = Axis("share that took longer", log=True, format=".3~%")
    return plot("", Axis(x, log=True), share, [*series, dots]) if series else ""


def line(name: str, points: Sequence[Point], colour: str | None = None) -> Series:
    """Return a line through points."""
    return Series(name, [x for x, _ in points], [y for _, y in points], colour=colour)


def load_and_cluster(moments: Sequence[Moment], slo: Slo) -> str:
    """Plot load, full answers, replicas, nodes and latency over time, below each other.

    Without samples of a cluster there is no plot of replicas.
    """
    at = [moment.t_s for moment in moments]
    warm = [Limit("warm-up", x=at[0], until=0, colour="muted")] if at and at[0] < 0 else []
    failed = [moment for moment in moments if moment.failed]
    load = [
        Series("answered", at, [moment.answered_rps for moment in moments], colour="muted"),
        Series("answered in full by a model", at, [moment.full_rps for moment in moments], colour="model"),
        # This line is drawn above the others, which would hide it where all requests are answered.
        Series("offered", at, [moment.offered_rps for moment in moments], colour="text", dashed=True),
        Series("failed", [m.t_s for m in failed], [m.failed for m in failed], "points", colour="bad"),
    ]
    parts = [plot("Load", SECOND, Axis("requests/s", zero=True), load, warm, height=HEIGHT)]
    if moments and moments[0].replicas:
        running = [
            Series(f"{name} replicas", at, [moment.replicas[name] for moment in moments], "step")
            for name in moments[0].replicas
        ]
        nodes = [moment.nodes for moment in moments]
        if any(number is not None for number in nodes):
            running.append(Series("nodes", at, nodes, "step", colour="muted", dashed=True))
        axis = Axis("running", zero=True, whole=True)
        parts.append(plot("Replicas and nodes", SECOND, axis, running, warm, height=HEIGHT // 2))
    lines = {name: [getattr(moment, f"{name}_ms") for moment in moments] for name in PERCENTILES}
    series = [Series(name, at, values, colour=PERCENTILES[name]) for name, values in lines.items()]
    # The plot of the load above names the warm-up; here its name would meet that of a limit.
    limits = [*(replace(each, name="") for each in warm), *_limits(slo)]
    parts.append(plot("Latency", SECOND, Axis("ms", zero=True), series, limits, height=HEIGHT))
    return "\n".join(parts)


def latency_against_rate(lines: Mapping[str, Sequence[Point]], slo: Slo) -> str:
    """Plot a line of (rate, latency) points for each name, on logarithmic axes, with the limits.

    A latency of None, which was not reached, breaks the line.
    """
    series = [line(name, sorted(points, key=tuple), PERCENTILES[name]) for name, points in lines.items()]
    x, y = Axis("requests/s offered", log=True), Axis("ms from the due time", log=True)
    return plot("", x, y, series, _limits(slo))


def _limits(slo: Slo) -> list[Limit]:
    return [Limit(f"{name} limit {ms:g} ms", y=ms) for name, ms in (("p90", slo.p90_ms), ("p99", slo.p99_ms))]
