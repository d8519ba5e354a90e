"""Plots of a model's report. Captions say how to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve.report.charts import Axis, Limit, Series, plot
from training.evaluation.verdict import MEASURES, TITLES

MOST_FEATURES = 20


def contenders(evaluation: Mapping[str, Any], by: str) -> str:
    """Plot a measure of every contender with its 95 % interval; empty if none is defined."""
    known = [name for name in evaluation["contenders"] if evaluation[name].get(by) is not None]
    series = []
    for name in known:
        value, title = evaluation[name][by], TITLES[name]
        low, high = evaluation["intervals"][name].get(by) or (value, value)
        series.append(Series(title, [value], [title], "points", low=[low], high=[high]))
    which = "lower" if by == "logloss" else "higher"
    caption = f"The {which}, the better. Bars are 95 % intervals of each alone; on the same rows, "
    caption += "differences are surer than overlapping bars suggest: see the table of differences."
    return _rows(f"{MEASURES[by]} of each", MEASURES[by], series, caption=caption, pixels=34)


def learning(history: Sequence[Mapping[str, Any]], best_epoch: int) -> str:
    """Plot training and validation logloss by epoch."""
    epochs = [line["epoch"] for line in history]
    lines = [
        Series("training", epochs, [line["train_logloss"] for line in history], colour="muted", dashed=True),
        Series("validation", epochs, [line["valid_logloss"] for line in history], colour="model"),
    ]
    caption = "Where the lines part, the network overfits its training rows."
    best = [Limit("best", x=best_epoch, colour="muted")]
    return plot("", Axis("epoch", whole=True, is_time=True), Axis("logloss"), lines, best, caption=caption)


def importance(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plot each feature's share of the permutation loss."""
    shown = list(lines)[:MOST_FEATURES]
    lost = sum(max(line["logloss"], 0.0) for line in lines) or 1.0
    losses = [100 * max(line["logloss"], 0.0) / lost for line in shown]
    names = [line["feature"] for line in shown]
    caption = "How much worse predictions are once a feature is shuffled. One that another can replace loses little."
    bars = [Series("logloss lost when permuted", losses, names, "bars", colour="model")]
    return _rows("", "% of all features", bars, caption=caption, pixels=30)


def _rows(title: str, x: str, series: Sequence[Series], *, caption: str, pixels: int) -> str:
    """Plot a row of some pixels for each category."""
    height = 16 + pixels * len({category for one in series for category in one.y})
    return plot(title, Axis(x), Axis(""), series, caption=caption, height=height)
