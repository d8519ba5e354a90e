"""Charts of an experiment's report, in the style of a model's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from training.evaluation.charts import DASHES, as_svg, new_axes

# Label at most this many dates on an axis, so that they stay legible.
MAX_DATES = 20


def cumulative(metric: Mapping[str, Any], days: Sequence[str]) -> str:
    """Plot the cumulative effect by day, with both intervals."""
    relative = all(day["relative_low"] is not None for day in metric["days"])
    names = ("relative", "relative_low", "relative_high") if relative else ("difference", "low", "high")
    times = 100 if relative else 1
    with new_axes("", "effect, %" if relative else f"effect, {metric['unit']}", height=2.6) as (figure, axes):
        at = [day["day"] for day in metric["days"]]
        middle, low, high = ([times * day[name] for day in metric["days"]] for name in names)
        axes.fill_between(at, low, high, color="0.8", label="95 %, fixed horizon")
        always = [[times * day["always_valid"][name] for day in metric["days"]] for name in names[1:]]
        for line, label in zip(always, ("95 % at any look", None), strict=True):
            axes.plot(at, line, "--", color="0.4", label=label)
        axes.plot(at, middle, "o-", color="0", label="effect of all days so far")
        axes.axhline(0, color="0", linestyle=":", linewidth=1)
        _finish(axes, days)
        return as_svg(figure)


def viewers(daily: Mapping[str, Sequence[int]], days: Sequence[str]) -> str:
    """Plot the viewers with an exposure on each day, by arm."""
    with new_axes("", "viewers of the day", height=2.4) as (figure, axes):
        for (arm, counts), (dash, grey) in zip(daily.items(), DASHES, strict=False):
            axes.plot(range(len(days)), counts, dash, marker="o", color=grey, label=arm)
        axes.set_ylim(0, 1.1 * max(max(counts) for counts in daily.values()))
        _finish(axes, days)
        return as_svg(figure)


def _finish(axes: Axes, days: Sequence[str]) -> None:
    every = -(-len(days) // MAX_DATES)
    axes.set_xticks(range(0, len(days), every), days[::every], rotation=45, ha="right")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
