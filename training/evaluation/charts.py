"""Plot the charts of a model's report as SVG readable in grey: lines differ by dashes and marks.

The same data gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tabrank",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
DASHES = (("-", "0.0"), ("--", "0.35"), (":", "0.0"), ("-.", "0.5"))
MOST_FEATURES = 20
MOST_SLICES = 30

Point = Sequence[float]


def learning(history: Sequence[Mapping[str, Any]], best_epoch: int) -> str:
    """Plot training and validation logloss by epoch."""
    with new_axes("epoch", "logloss") as (figure, axes):
        epochs = [line["epoch"] for line in history]
        axes.plot(epochs, [line["train_logloss"] for line in history], "--.", color="0.5", label="training")
        axes.plot(epochs, [line["valid_logloss"] for line in history], "-o", color="0", label="validation")
        axes.axvline(best_epoch, color="0.6", linestyle=":", label="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return as_svg(figure)


def reliability(points: Sequence[Point]) -> str:
    """Plot the observed rate against the predicted, both from 0."""
    with new_axes("predicted", "observed") as (figure, axes):
        top = 1.05 * max(max(point) for point in points)
        axes.plot([0, top], [0, top], "--", color="0.6", label="perfect")
        axes.plot([p for p, _ in points], [y for _, y in points], "o-", color="0", label="model")
        axes.legend(loc="upper left")
        return as_svg(figure)


def lift(model: Sequence[float]) -> str:
    """Plot the rate in each tenth of the rows over the base rate."""
    with new_axes("tenth of the rows, by score, the highest first", "times the base rate") as (figure, axes):
        axes.bar(range(1, 11), model, color="0.6", edgecolor="0")
        axes.axhline(1, color="0", linestyle=":")
        axes.set_xticks(range(1, 11))
        return as_svg(figure)


def gain(curves: Mapping[str, Sequence[float]]) -> str:
    """Plot the share of positives down to each tenth of the rows, with one line a contender."""
    with new_axes("% of the rows, by score", "% of the positives") as (figure, axes):
        at = list(range(0, 101, 10))
        for i, (name, curve) in enumerate(curves.items()):
            dash, grey = DASHES[i % len(DASHES)]
            axes.plot(at, [100 * share for share in curve], dash, color=grey, label=name)
        axes.plot([0, 100], [0, 100], color="0.8", label="by chance")
        axes.legend(loc="lower right")
        return as_svg(figure)


def importance(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plot each feature's share of attention and of the permutation loss, two bars a feature."""
    shown = list(lines)[:MOST_FEATURES]
    lost = sum(max(line["logloss"], 0.0) for line in lines) or 1.0
    with new_axes("% of all features", "", height=0.8 + 0.3 * len(shown)) as (figure, axes):
        at = range(len(shown))
        left = [100 * max(line["logloss"], 0.0) / lost for line in shown]
        masks = [100 * line["masks"] for line in shown]
        axes.barh([i - 0.2 for i in at], left, 0.4, color="0.25", label="logloss lost when permuted")
        axes.barh(
            [i + 0.2 for i in at], masks, 0.4, color="0.85", edgecolor="0", label="attention of the masks"
        )
        axes.set_yticks(list(at), [line["feature"] for line in shown])
        axes.invert_yaxis()
        axes.legend(loc="lower right")
        return as_svg(figure)


def slices(parts: Sequence[Mapping[str, Any]]) -> str:
    """Plot the model's NDCG@10 above popular's in each part, with two standard errors."""
    shown = [p for p in parts if p["paired"] and p["paired"]["ndcg@10"] is not None][:MOST_SLICES]
    with new_axes("NDCG@10 above popular's", "", height=0.8 + 0.24 * len(shown)) as (figure, axes):
        at = list(range(len(shown)))
        axes.errorbar(
            [part["paired"]["ndcg@10"] for part in shown],
            at,
            xerr=[2 * part["paired"]["se"] for part in shown],
            fmt="o",
            color="0",
            capsize=3,
        )
        axes.axvline(0, color="0", linestyle=":")
        axes.set_yticks(at, [f"{part['by']}: {part['value']}" for part in shown])
        axes.invert_yaxis()
        return as_svg(figure)


def pareto(search: Mapping[str, Any]) -> str:
    """Plot cost against validation logloss of all networks tried; rivals are horizontal lines."""
    board = search["leaderboard"]
    tried = [
        line
        for line in board
        if line["kind"] == "tabnet" and None not in (line["us_per_candidate"], line["valid_logloss"])
    ]
    with new_axes("µs a candidate, served on one core", "validation logloss", height=3.6) as (figure, axes):
        for fits, mark, name in ((True, "o", "network"), (False, "x", "network over the budget")):
            some = [line for line in tried if line["fits"] is fits]
            if some:
                axes.plot(*_points(some), mark, color="0.5", label=name, markersize=5)
        front = sorted((line for line in tried if line["front"]), key=lambda line: line["us_per_candidate"])
        axes.plot(*_points(front), "-", color="0.3", linewidth=1, label="front")
        winner = min(
            (line for line in tried if line["fits"]), key=lambda line: line["valid_logloss"], default=None
        )
        if winner:
            axes.plot(*_points([winner]), "*", color="0", markersize=14, label="winner")
        if search["max_us_per_candidate"] is not None:
            axes.axvline(search["max_us_per_candidate"], color="0", linestyle=":", label="budget")
        rivals = [line for line in board if line["kind"] != "tabnet" and line["valid_logloss"] is not None]
        for i, line in enumerate(rivals):
            dash, grey = DASHES[1:][i % 3]
            axes.axhline(line["valid_logloss"], linestyle=dash, color=grey, linewidth=1, label=line["name"])
        if tried:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return as_svg(figure)


def _points(lines: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [line["us_per_candidate"] for line in lines], [line["valid_logloss"] for line in lines]


@contextmanager
def new_axes(x: str, y: str, height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure as wide as a page and its axes; the style holds within the block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield figure, axes


def as_svg(figure: Figure) -> str:
    """Return the figure as inline SVG."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
