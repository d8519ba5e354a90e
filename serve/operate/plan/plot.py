"""Draw a plan as an SVG: offered load, Ray's counts, replicas and nodes over time.

The plot is readable in grey. matplotlib comes with the extra `loadtest`.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serve.operate.plan.comparison import Comparison
from serve.operate.plan.outcome import Outcome

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tabrank",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def draw(outcome: Outcome, comparison: Comparison | None) -> str:
    """Return the plot as SVG; a real run's counts are dotted beside the planned ones."""
    scaled = [each for each in outcome.service.deployments[:2] if each.target is not None]
    at_s = np.array([sample.t_s for sample in outcome.samples])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 2.0 * (2 + len(scaled)) + 0.4), layout="constrained")
        rows: list[Axes] = list(figure.subplots(2 + len(scaled), 1, sharex=True))
        _steps(rows[0], at_s, [outcome.trace.rate_rps(at) for at in at_s], "req/s offered", "-", "0.0")
        rows[0].set_ylabel("req/s")
        rows[0].set_ylim(bottom=0)
        for axes, deployment in zip(rows[1:], scaled, strict=False):
            name = deployment.name
            ongoing = [sample.ongoing[name] / (deployment.target or 1.0) for sample in outcome.samples]
            _steps(axes, at_s, ongoing, "ongoing / target", "-", "0.65")
            _steps(axes, at_s, [sample.wanted[name] for sample in outcome.samples], "wanted", "--", "0.3")
            _replicas(axes, outcome, comparison, name, "running")
            axes.set_ylabel(name)
        _replicas(rows[-1], outcome, comparison, "nodes", "nodes")
        rows[-1].set_ylabel("nodes")
        rows[-1].set_xlabel("second of the trace")
        for axes in rows:
            axes.legend(loc="upper left", ncols=4)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _replicas(axes: Axes, outcome: Outcome, comparison: Comparison | None, name: str, label: str) -> None:
    at_s = np.array([sample.t_s for sample in outcome.samples])
    _steps(axes, at_s, outcome.column(name), f"{label}, planned" if comparison else label, "-", "0.0")
    for fit in comparison.fits if comparison else ():
        if fit.name == name:
            _steps(axes, np.asarray(outcome.trace.t_s), fit.real, f"{label}, real", ":", "0.0")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _steps(axes: Axes, at_s: Any, values: Any, label: str, dash: str, grey: str) -> None:
    axes.step(at_s, values, where="post", linestyle=dash, color=grey, label=label, linewidth=1.3)
