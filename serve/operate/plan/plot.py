"""Draw a plan as an SVG: offered load, Ray's counts, replicas and nodes over time."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serve.operate.plan.outcome import ONGOING, WANTED, Outcome
from serve.operate.plan.trace import NODES, TIME, count_column
from serve.report.svg import plot


@plot
def draw(outcome: Outcome, with_real: bool) -> Figure:
    """Draw the plot; `with_real` dots a real run's counts beside the planned ones."""
    scaled = outcome.service.targets
    at_s = outcome.counts[TIME]
    figure = Figure(figsize=(8.5, 2.0 * (2 + len(scaled)) + 0.4), layout="constrained")
    load, *rows, nodes = figure.subplots(2 + len(scaled), 1, sharex=True)
    _steps(load, at_s, [outcome.trace.rate_rps(at) for at in at_s], "req/s offered", "-", "0.0")
    load.set_ylabel("req/s")
    load.set_ylim(bottom=0)
    for axes, (deployment, target) in zip(rows, scaled, strict=True):
        ongoing = outcome.counts[f"{deployment.name}{ONGOING}"] / target
        _steps(axes, at_s, ongoing, "ongoing / target", "-", "0.65")
        _steps(axes, at_s, outcome.counts[f"{deployment.name}{WANTED}"], "wanted", "--", "0.3")
        _counts(axes, outcome, with_real, deployment.name, "running")
    _counts(nodes, outcome, with_real, NODES, NODES)
    nodes.set_xlabel("second of the trace")
    for axes in (load, *rows, nodes):
        axes.legend(loc="upper left", ncols=4)
    return figure


def _counts(axes: Axes, outcome: Outcome, with_real: bool, name: str, label: str) -> None:
    planned, real = outcome.counts[count_column(name)], outcome.trace.counted.get(count_column(name))
    _steps(axes, outcome.counts[TIME], planned, f"{label}, planned" if with_real else label, "-", "0.0")
    if with_real and real is not None:
        _steps(axes, outcome.trace.t_s, real, f"{label}, real", ":", "0.0")
    axes.set_ylabel(name)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _steps(axes: Axes, at_s: Any, values: Any, label: str, dash: str, grey: str) -> None:
    axes.step(at_s, values, where="post", linestyle=dash, color=grey, label=label, linewidth=1.3)
