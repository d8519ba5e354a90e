"""Plots as SVG: load, latency and freshness of a run, and latency against rate of a search.

Limits are dotted and labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from loadtest.measure.measure import Floats, Requests
from loadtest.measure.timeline import Moment
from loadtest.workload.profiles import Slo
from serve.report.svg import LINES, plot

GREYS = ("0.2", "0.5", "0.75", "0.95")


@plot
def distribution(
    x: str,
    y: str,
    lines: Mapping[str, tuple[Floats, int]],
    marks: Mapping[str, tuple[float, float]],
) -> Figure:
    """Plot the share of a total that took longer than a time, for each name, with named marks.

    A line is the times of those that came, and the total; a mark is a time and a share. What holds
    passes below its mark.
    """
    figure, axes = _axes(x, y)
    # The last of up to three lines is black.
    axes.set_prop_cycle(LINES[3 - len(lines) :])
    for name, (took_ms, total) in lines.items():
        left = 1 - np.arange(1, len(took_ms) + 1) / max(total, 1)
        axes.step(np.sort(took_ms), np.maximum(left, 0.5 / max(total, 1)), where="post", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for text, at in marks.items():
        axes.plot(*at, marker="v", color="black", markersize=8, linestyle="none")
        axes.annotate(text, at, xytext=(0, 7), textcoords="offset points", ha="right")
    axes.set_ylim(0.5 / max(1, *(total for _, total in lines.values())), 1.2)
    axes.legend(loc="lower left", ncols=3)
    return figure


@plot
def load_and_cluster(moments: Sequence[Moment], slo: Slo) -> Figure:
    """Plot load, full answers, replicas, nodes and latency over time, in stacked panels.

    Without samples of a cluster there is no panel of replicas.
    """
    watched = bool(moments and moments[0].replicas)
    figure = Figure(figsize=(8.5, 6.4 if watched else 4.6), layout="constrained")
    panels = figure.subplots(3 if watched else 2, 1, sharex=True)
    _draw_load(panels[0], moments)
    if watched:
        _draw_replicas(panels[1], moments)
    _draw_latency(panels[-1], moments, slo)
    panels[-1].set_xlabel("second of the measurement")
    if moments and moments[0].t_s < 0:
        for axes in panels:
            axes.axvspan(moments[0].t_s, 0, color="0.9")
        place = {"xytext": (2, 2), "textcoords": "offset points"}
        panels[0].annotate("warm-up", (moments[0].t_s, 0), fontsize=8, **place)
    return figure


def _draw_load(axes: Axes, moments: Sequence[Moment]) -> None:
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


def _draw_replicas(axes: Axes, moments: Sequence[Moment]) -> None:
    at = [moment.t_s for moment in moments]
    for name in moments[0].replicas:
        counts = _floats(moment.replicas[name] for moment in moments)
        axes.step(at, counts, where="post", label=f"{name} replicas")
    nodes = _floats(moment.nodes for moment in moments)
    if not np.isnan(nodes).all():
        axes.step(at, nodes, linestyle="-.", color="0.4", where="post", label="nodes")
    axes.set_ylabel("running")
    axes.set_ylim(0, max(2.0, axes.get_ylim()[1] * 1.35))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", ncols=4)


def _draw_latency(axes: Axes, moments: Sequence[Moment], slo: Slo) -> None:
    at = [moment.t_s for moment in moments]
    for name in ("p50", "p90", "p99"):
        axes.plot(at, _floats(getattr(moment, f"{name}_ms") for moment in moments), label=name)
    _draw_limits(axes, slo)
    axes.set_ylabel("ms")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.legend(loc="upper left", ncols=3)


@plot
def latency_against_rate(lines: Mapping[str, Sequence[tuple[float, float | None]]], slo: Slo) -> Figure:
    """Plot a line of (rate, latency) points for each name, on logarithmic axes, with the limits.

    A latency of None, which was not reached, breaks the line.
    """
    figure, axes = _axes("requests a second offered", "ms from the scheduled start")
    for name, points in lines.items():
        at = sorted(points, key=lambda point: point[0])
        axes.plot([x for x, _ in at], _floats(y for _, y in at), marker=".", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    _draw_limits(axes, slo)
    axes.legend(loc="upper left")
    return figure


@plot
def answers_against_load(times: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Plot up to four named shares of the knee, stacked, at ascending multiples of the knee."""
    figure, axes = _axes("multiple of the knee offered", "shares of the knee")
    axes.stackplot(times, *shares.values(), labels=list(shares), colors=GREYS, edgecolor="black")
    axes.legend(loc="upper left")
    return figure


@plot
def freshness_over_time(probes: Mapping[str, Requests], limit_ms: float) -> Figure:
    """Plot a mark for each probe event by its kind, and a cross for one that never showed."""
    figure, axes = _axes("second of the measurement", "ms from the event to the ranking")
    for (kind, part), (marker, grey) in zip(probes.items(), (("o", "0.6"), ("^", "0.0")), strict=True):
        hollow: dict[str, Any] = {"color": grey, "markersize": 4, "fillstyle": "none"}
        axes.plot(part.at_s[part.ok], part.latency_ms[part.ok], marker, label=f"new {kind}", **hollow)
        missed = part.at_s[~part.ok]
        if len(missed):
            axes.plot(missed, [limit_ms] * len(missed), "x", color=grey, label=f"{kind}, never shown")
    _limit(axes, limit_ms, "limit of p99")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.legend(loc="upper left", ncols=4)
    return figure


@plot
def memory_and_files(at_s: Sequence[float], memory_mib: Sequence[float], files: Sequence[int]) -> Figure:
    """Plot memory above and open files below over time, both from 0 up."""
    figure = Figure(figsize=(8.5, 4.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, values, label in zip(panels, (memory_mib, files), ("MiB", "open files"), strict=True):
        axes.plot(at_s, values, color="black")
        axes.set_ylabel(label)
        axes.set_ylim(0, max(values, default=1) * 1.2)
    panels[-1].set_xlabel("second of the measurement")
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _draw_limits(axes: Axes, slo: Slo) -> None:
    _limit(axes, slo.p90_ms, "limit of p90")
    _limit(axes, slo.p99_ms, "limit of p99")


def _limit(axes: Axes, value: float, label: str) -> None:
    axes.axhline(value, color="black", linestyle=":", linewidth=1.0)
    axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def _floats(values: Iterable[float | None]) -> Floats:
    """Return the values as an array; None becomes NaN, which breaks a line."""
    return np.array(list(values), dtype=np.float64)
