"""Plots as SVG: latency, throughput and freshness of a run, and latency against rate of a search.

They are readable in grey: lines differ by their dashes, and limits are dotted and labelled.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from loadtest.measure.measure import Floats, Requests
from loadtest.measure.seconds import Second
from loadtest.measure.timeline import Moment
from loadtest.workload.profiles import Profile, Slo

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tabrank",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
DASHES = (("-", "0.55"), ("--", "0.3"), ("-", "0.0"), (":", "0.0"))
LIMIT: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.0}


def latency_over_time(seconds: list[Second], slo: Slo) -> str:
    """Plot p50, p90 and p99 of the requests due in each second, with the limits."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("second of the measurement", "ms from the scheduled start")
        at = [row.second for row in seconds]
        for name, (dash, grey) in zip(("p50_ms", "p90_ms", "p99_ms"), DASHES, strict=False):
            values = [_or_nan(getattr(row, name)) for row in seconds]
            axes.plot(at, values, linestyle=dash, color=grey, label=name.removesuffix("_ms"))
        _limit(axes, slo.p90_ms, "limit of p90")
        _limit(axes, slo.p99_ms, "limit of p99")
        _shade_warmup(axes, seconds)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.legend(loc="upper left", ncols=3)
        return _svg(figure)


def latency_distribution(requests: Requests, slo: Slo) -> str:
    """Plot the share of requests that took longer than a latency.

    A run that holds passes below the marks.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("ms from the scheduled start", "share of requests not yet answered")
        total = len(requests.ok)
        _draw_distribution(axes, requests.latency_ms[requests.ok], total, color="black", linewidth=1.2)
        for share, limit_ms, name in ((0.1, slo.p90_ms, "p90"), (0.01, slo.p99_ms, "p99")):
            axes.plot([limit_ms], [share], marker="v", color="black", markersize=8, linestyle="none")
            text = f"{name} ≤ {limit_ms:g} ms"
            axes.annotate(text, (limit_ms, share), xytext=(0, 7), textcoords="offset points", ha="center")
        axes.set_ylim(0.5 / max(total, 1), 1.2)
        return _svg(figure)


def throughput_over_time(seconds: list[Second], profile: Profile) -> str:
    """Plot the requests due and the good answers of each second, with the target."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("second of the measurement", "requests a second")
        at = [row.second for row in seconds]
        axes.plot(at, [row.requests for row in seconds], linestyle="--", color="0.55", label="due")
        axes.plot(at, [row.answered for row in seconds], linestyle="-", color="black", label="answered")
        line = profile.line
        axes.plot(
            [at_s for at_s, _ in line],
            [profile.target_rps * factor for _, factor in line],
            **LIMIT,
            label="target",
        )
        _shade_warmup(axes, seconds)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.legend(loc="lower right", ncols=3)
        return _svg(figure)


def load_and_cluster(moments: list[Moment], slo: Slo) -> str:
    """Plot load, full answers, replicas, nodes and latency over time, in stacked panels.

    Without samples of a cluster there is no panel of replicas.
    """
    watched = bool(moments and moments[0].replicas)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 6.4 if watched else 4.6), layout="constrained")
        panels = figure.subplots(3 if watched else 2, 1, sharex=True)
        _draw_load(panels[0], moments)
        if watched:
            _draw_replicas(panels[1], moments)
        _draw_latency(panels[-1], moments, slo)
        panels[-1].set_xlabel("second of the measurement")
        return _svg(figure)


def _draw_load(axes: Axes, moments: list[Moment]) -> None:
    at = [moment.t_s for moment in moments]
    axes.plot(at, [moment.offered_rps for moment in moments], "--", color="0.3", label="offered")
    axes.plot(at, [moment.answered_rps for moment in moments], "-", color="0.65", label="answered")
    axes.plot(at, [moment.full_rps for moment in moments], "-", color="black", label="in full")
    failed = [(moment.t_s, moment.failed) for moment in moments if moment.failed]
    if failed:
        axes.plot(*zip(*failed, strict=True), "x", color="black", label="failed")
    axes.set_ylabel("requests a second")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.legend(loc="upper left", ncols=4)


def _draw_replicas(axes: Axes, moments: list[Moment]) -> None:
    at = [moment.t_s for moment in moments]
    for i, name in enumerate(moments[0].replicas):
        dash, grey = DASHES[i % len(DASHES)]
        counts = [_or_nan(moment.replicas[name]) for moment in moments]
        axes.step(at, counts, linestyle=dash, color=grey, where="post", label=f"{name} replicas")
    if any(moment.nodes is not None for moment in moments):
        nodes = [_or_nan(moment.nodes) for moment in moments]
        axes.step(at, nodes, linestyle="-.", color="0.4", where="post", label="nodes")
    axes.set_ylabel("running")
    axes.set_ylim(0, max(2.0, axes.get_ylim()[1] * 1.35))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", ncols=4)


def _draw_latency(axes: Axes, moments: list[Moment], slo: Slo) -> None:
    at = [moment.t_s for moment in moments]
    for name, (dash, grey) in (("p50_ms", DASHES[0]), ("p99_ms", DASHES[2])):
        values = [_or_nan(getattr(moment, name)) for moment in moments]
        axes.plot(at, values, linestyle=dash, color=grey, label=name.removesuffix("_ms"))
    _limit(axes, slo.p99_ms, "limit of p99")
    axes.set_ylabel("ms")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.legend(loc="upper left", ncols=2)


def latency_against_rate(lines: Mapping[str, Sequence[tuple[float, float | None]]], slo: Slo) -> str:
    """Plot a line of (rate, latency) points for each name, on logarithmic axes, with the limits.

    A latency of None, which was not reached, breaks the line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("requests a second offered", "ms from the scheduled start")
        _draw_lines(axes, lines)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        _limit(axes, slo.p90_ms, "limit of p90")
        _limit(axes, slo.p99_ms, "limit of p99")
        axes.legend(loc="upper left")
        return _svg(figure)


def freshness_over_time(probes: Mapping[str, Requests], limit_ms: float) -> str:
    """Plot a mark for each probe event by its kind, and a cross for one that never showed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("second of the measurement", "ms from the event to the ranking")
        for (kind, part), (marker, grey) in zip(probes.items(), (("o", "0.6"), ("^", "0.0")), strict=True):
            axes.plot(
                part.at_s[part.ok],
                part.latency_ms[part.ok],
                marker,
                color=grey,
                markersize=4,
                fillstyle="none",
                label=f"new {kind}",
            )
            missed = part.at_s[~part.ok]
            if len(missed):
                axes.plot(missed, [limit_ms] * len(missed), "x", color=grey, label=f"{kind}, never shown")
        _limit(axes, limit_ms, "limit of p99")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
        axes.legend(loc="upper left", ncols=4)
        return _svg(figure)


def freshness_distribution(probes: Mapping[str, Requests], limit_ms: float) -> str:
    """Plot the share of events, by kind and of all, that took longer than a time to show."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes("ms from the event to the ranking", "share of events not yet shown")
        lines = {f"new {kind}": (part.latency_ms[part.ok], len(part.ok)) for kind, part in probes.items()}
        every = np.concatenate([shown for shown, _ in lines.values()])
        lines["all"] = (every, sum(total for _, total in lines.values()))
        for (name, (shown_ms, total)), (dash, grey) in zip(lines.items(), DASHES, strict=False):
            _draw_distribution(axes, shown_ms, total, linestyle=dash, color=grey, label=name)
        axes.plot([limit_ms], [0.01], marker="v", color="black", markersize=8, linestyle="none")
        axes.annotate(
            f"p99 < {limit_ms:g} ms", (limit_ms, 0.01), (0, 7), textcoords="offset points", ha="right"
        )
        axes.set_ylim(0.5 / max(lines["all"][1], 1), 1.2)
        axes.legend(loc="lower left", ncols=3)
        return _svg(figure)


def memory_and_files(at_s: Sequence[float], memory_mib: Sequence[float], files: Sequence[int]) -> str:
    """Plot memory above and open files below over time, both from 0 up."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4.0), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for axes, values, label in zip(panels, (memory_mib, files), ("MiB", "open files"), strict=True):
            axes.plot(at_s, values, color="black")
            axes.set_ylabel(label)
            axes.set_ylim(0, max(values, default=1) * 1.2)
        panels[-1].set_xlabel("second of the measurement")
        return _svg(figure)


def cost_against(x: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Plot a line of (size, µs per request) points for each name, with a logarithmic size axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(x, "µs a request (median)")
        _draw_lines(axes, lines)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
        axes.legend(loc="upper left", ncols=2)
        return _svg(figure)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _draw_distribution(axes: Axes, took_ms: Floats, total: int, **style: Any) -> None:
    """Draw the share of `total` that took longer than each time, on logarithmic axes."""
    left = 1 - np.arange(1, len(took_ms) + 1) / max(total, 1)
    axes.step(np.sort(took_ms), np.maximum(left, 0.5 / max(total, 1)), where="post", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float | None]]]) -> None:
    """Draw a line through the points of each name; None breaks it."""
    for i, (name, points) in enumerate(lines.items()):
        dash, grey = DASHES[i % len(DASHES)]
        at = sorted(points, key=lambda point: point[0])
        axes.plot([x for x, _ in at], [_or_nan(y) for _, y in at], dash, color=grey, marker=".", label=name)


def _limit(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, **LIMIT)
    axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def _shade_warmup(axes: Axes, seconds: list[Second]) -> None:
    if seconds and seconds[0].second < 0:
        axes.axvspan(seconds[0].second, 0, color="0.9", label="warm-up")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
