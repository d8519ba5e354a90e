"""Trials of a search on its page: each with its parameters, and the loss against each parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serve.report.charts import Axis, plot
from serve.report.page import details, multiples, paragraph, section, table
from serve.report.rows import number
from training.evaluation.charts import Lines, dots
from training.terminal import decimal

# From this ratio of the largest value to the smallest on, a parameter has a logarithmic axis.
WIDE = 10
# A ranking of parameters from fewer trials would be one of chance.
ENOUGH_TRIALS = 6
PLOTS = (
    "Each dot is a trial; the lower, the better. A parameter matters where the dots rise or fall from one side to the "
    "other. The plots are ordered by that: first comes the parameter whose values explain most of the differences "
    "between trials. With few trials, chance explains some too, and the search tries good values more often."
)


def page_parts(search: Mapping[str, Any]) -> list[str]:
    """Return the plots and the table of a search's trials; nothing for a report of before."""
    trials = sorted(search.get("trials", ()), key=lambda one: one["valid_logloss"] or math.inf)
    scored = [one for one in trials if one["valid_logloss"]]
    if not trials:
        return []
    # A trial that was stopped early has a higher loss for want of epochs.
    whole = [one for one in scored if one["share"] >= 1]
    whole = whole if len(whole) >= ENOUGH_TRIALS else scored
    losses = [one["valid_logloss"] for one in whole]
    names = [name for name in trials[0]["point"] if len({one["point"][name] for one in scored}) > 1]
    names.sort(key=lambda name: -explained([one["point"][name] for one in whole], losses))
    plots = [_plot(name, scored, search["winner"]) for name in names if len(scored) >= ENOUGH_TRIALS]
    summary = "All trials with their parameters, the lowest validation logloss first"
    told = details(summary, table(_rows(trials, search["winner"])))
    return [section("Which parameters matter", paragraph(PLOTS), multiples(*plots)) * bool(plots), told]


def explained(values: Sequence[Any], losses: Sequence[float]) -> float:
    """Return the share of the variance of the losses' ranks that lies between groups of values.

    It is eta squared. A group is a value; of more than three numbers, a third of the trials.
    """
    ranks = np.argsort(np.argsort(losses)).astype(np.float64)
    codes = np.unique(values, return_inverse=True)[1]
    if not isinstance(values[0], str) and codes.max() >= 3:
        codes = np.searchsorted(np.quantile(codes, [1 / 3, 2 / 3]), codes)
    means = np.bincount(codes, ranks) / np.maximum(np.bincount(codes), 1)
    return float(np.var(means[codes]) / (np.var(ranks) or 1.0))


def _rows(trials: Lines, winner: str) -> list[list[str]]:
    """Return a header, then a row for each trial."""
    names = [name for name in trials[0]["point"] if name != "epochs"]
    head = ["", "status", "logloss", "AUC", "NDCG@10", "µs a candidate", "row passes", "epochs", "seconds"]
    rows = [[*head, *names]]
    for one in trials:
        share, point = one["share"], one["point"]
        status = "winner" if one["name"] == winner else "finished" if share >= 1 else "stopped early"
        cells = [one["name"], f"failed: {one['failed']}" if one["failed"] else status]
        cells += [decimal(one[f"valid_{key}"]) for key in ("logloss", "auc", "ndcg")]
        cells += [number(one["us_per_candidate"], ".2f"), number(one["rows"])]
        cells += [f"{round(share * point['epochs'])} of {point['epochs']}", number(one["seconds"], ".1f")]
        given = (point[name] for name in names)
        rows.append([*cells, *(f"{one:.3g}" if isinstance(one, float) else str(one) for one in given)])
    return rows


def _plot(name: str, scored: Lines, winner: str) -> str:
    """Plot the loss against a parameter, with the winner apart from finished and stopped trials."""
    rest = [one for one in scored if one["name"] != winner]
    groups = {
        "finished": ([one for one in rest if one["share"] >= 1], "muted"),
        "stopped early, by its last epoch": ([one for one in rest if one["share"] < 1], "popular"),
        "winner": ([one for one in scored if one["name"] == winner], "model"),
    }
    values = [one["point"][name] for one in scored]
    is_wide = not isinstance(values[0], str) and max(values) > WIDE * min(values) > 0
    axis = Axis(name, log=is_wide, whole=isinstance(values[0], int))
    return plot("", axis, Axis("logloss"), dots(groups, lambda one: one["point"][name]), height=150)
