"""Guardrails of an experiment: metrics, and degraded answers by arm, with tests.

In shapes, N is the number of exposures and V of viewers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import norm

from serve.config.settings import Experiment
from serve.features.experiment_metrics import EXPOSURES, Metric
from training.experiment.comparison import best_after
from training.experiment.confidence_sequence import needed_at_a_look
from training.experiment.contrast import contrast
from training.experiment.panel import Panel
from training.experiment.statistics import POWER, Z, log_error
from training.experiment.verdict import deciding, sized, span, too_few

# The rung of answers that no model ranked, which an arm with a model and one without can have.
FALLBACK = "fallback"
# A difference in degraded answers causes a warning if its p-value is below this, which is rarely
# due to chance, and if its whole interval is beyond the share below. Small differences are normal,
# because only an arm with a model can lack its model.
FLAG_P = 0.01
FLAG_SHARE = 0.005
# What the data say about a guardrail and its margin.
State = Literal["worse", "holds", "not shown", "no relative size"]
NO_SIZE: State = "no relative size"
RELATIVE = ("relative", "relative_low", "relative_high")
ABSOLUTE = ("difference", "low", "high")


def by_arm(here: pd.DataFrame, arms: tuple[str, str]) -> dict[str, Any]:
    """Return by arm the exposures, the shares of rungs and reasons, and latencies in ms."""
    found = {}
    for name in arms:
        mine = here[here["arm"] == name]
        num = max(len(mine), 1)
        columns = (mine["rung"], mine["degraded"])
        rungs, reasons = ((column.value_counts(sort=False) / num).to_dict() for column in columns)
        took_ms = mine["latency_ms"].dropna()
        p50_ms, p99_ms = np.percentile(took_ms, (50, 99)).tolist() if len(took_ms) else (None, None)
        found[name] = {
            "exposures": len(mine),
            "rungs": rungs,
            "degraded_share": 1.0 - rungs.get("full", 0.0) if len(mine) and rungs else None,
            "reasons": {why: share for why, share in reasons.items() if share},
            "p50_ms": p50_ms,
            "p99_ms": p99_ms,
        }
    return found


def tests(here: pd.DataFrame, people: Panel, arms: tuple[str, str], *, ended: bool) -> list[dict[str, Any]]:
    """Return the shares of fallback and of degraded answers, with intervals and tests.

    `here` [N] holds the exposures of the panel `people`. A share that does not vary has no test.
    Viewers are the unit of the variance.
    """
    flags = {arm: people.arm == arm for arm in arms}
    if min(int(mine.sum()) for mine in flags.values()) < 2:
        return []
    rung = here["rung"]
    shares: dict[str, tuple[str, Any]] = {
        "fallback": ("answers by fallback", rung == FALLBACK),
        "degraded": ("answers not by rung full", rung.notna() & (rung != "full")),
    }
    # The panel numbers the viewers in the same order.
    viewer = pd.factorize(here["viewer"])[0]
    counted = {"exposures": None} | {name: is_one for name, (_, is_one) in shares.items()}
    sums = {name: np.bincount(viewer, is_one).astype(np.float64) for name, is_one in counted.items()}
    best_at = best_after(people, arms)
    rows = []
    for name, (title, _) in shares.items():
        metric = Metric(name, title, "share of exposures", title, name, below="exposures")
        found = contrast(metric, sums, flags, best_at)
        if found.few:
            # Too few viewers have any for a share of exposures. Whether any differ, viewers tell.
            metric, title = replace(metric, below=None), f"viewers with {title}"
            found = contrast(metric, sums, flags, best_at)
        if found.effect is None or found.valid is None:
            continue
        base, share = found.effect.control, found.effect.treatment
        interval = found.effect if ended else found.valid
        low, high, p = interval.low, interval.high, interval.p
        row = {"name": name, "title": title, "control": base, "treatment": share, "difference": share - base}
        row |= {"low": low, "high": high, "p": p, "worse": "higher", "margin": FLAG_SHARE}
        rows.append(row | {"state": _state(low, high, "higher", FLAG_SHARE)})
    return rows


def warnings(tested: Sequence[Mapping[str, Any]], arms: tuple[str, str]) -> list[str]:
    """Return a warning if the result of `tests` shows that the arms were degraded unevenly."""
    for row in tested:
        if row["p"] < FLAG_P and max(row["low"], -row["high"]) > FLAG_SHARE:
            return [
                f"the arms were degraded unevenly: {row['title']} are {row['treatment']:.2%} of {arms[1]!r} and "
                f"{row['control']:.2%} of {arms[0]!r} ({spread(row)}, p = {row['p']:.2g}); the effect includes "
                "this (degraded by, below, has the reasons)"
            ]
    return []


def of_metrics(
    rows_of: Mapping[str, Any],
    metrics: Sequence[Metric],
    declaration: Experiment,
    people: Panel,
    arms: tuple[str, str],
    *,
    ended: bool,
) -> list[dict[str, Any]]:
    """Return a test of each declared guardrail, and always one of exposures.

    `rows_of` holds the rows of a comparison by name. Metrics without events in the log are missing.
    """
    margins = {EXPOSURES.name: declaration.smallest_effect, **declaration.guardrails}
    found = []
    for metric in metrics:
        row = rows_of.get(metric.name, {**vars(metric), "effect": None})
        is_declared = metric.name in declaration.guardrails
        if metric.name in margins and (row["effect"] or is_declared):
            margin = margins[metric.name]
            needed = _needed(row, margin, people, arms, ended) if row["effect"] and is_declared else None
            more = {"declared": is_declared, "viewers_needed": needed}
            found.append(_of_metric(row, margin, ended) | more)
    return found


def _of_metric(row: Mapping[str, Any], margin: float, ended: bool) -> dict[str, Any]:
    """Return a metric's row as a test of the guardrail that it gets worse by at most `margin`.

    This is a test of non-inferiority: a guardrail holds once the whole interval that decides lies
    within the margin.
    """
    worse = "higher" if row["bad"] else "lower"
    found = {name: row.get(name) for name in ("name", "title", "control", "treatment", "capped", "few")}
    found |= {"worse": worse, "margin": margin}
    if row["effect"] is None:
        state: State = "not shown" if row.get("few") else NO_SIZE
        return found | dict.fromkeys((*ABSOLUTE, *RELATIVE, "p")) | {"state": state}
    interval = {**row["effect"], **deciding(row, ended)}
    state = _state(interval["relative_low"], interval["relative_high"], worse, margin)
    # A limit may hide the harm to those above it, so what they do has to agree.
    if (
        state == "holds"
        and row.get("raw")
        and _state(*_within_one_error(row["raw"]), worse, margin) != "holds"
    ):
        state = "not shown"
    return found | interval | {"state": state}


def _within_one_error(raw: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the relative effect minus and plus its standard error; None if it has no size."""
    effect = raw["effect"]
    log_se = log_error(effect["relative_low"], effect["relative_high"])
    if log_se is None:
        return None, None
    return tuple((1 + effect["relative"]) * math.exp(sign * log_se) - 1 for sign in (-1, 1))


def _needed(
    row: Mapping[str, Any], margin: float, people: Panel, arms: tuple[str, str], ended: bool
) -> int | None:
    """Return how many viewers of both arms show with 80 % probability that a guardrail holds.

    This assumes that the treatment does not change the metric. Returns None if the metric has no
    relative interval.
    """
    log_se = log_error(row["effect"]["relative_low"], row["effect"]["relative_high"])
    if log_se is None:
        return None
    bound = math.log1p(margin) if row["bad"] else -math.log1p(-margin)
    errors = (Z + float(norm.ppf(POWER))) * log_se / bound
    num = max(3.0, int(people.rows(arms).sum()) * errors**2)
    return math.ceil(num) if ended else needed_at_a_look(num, best_after(people, arms))


def _state(low: float | None, high: float | None, worse: str, margin: float) -> State:
    if low is None:
        return NO_SIZE
    high = math.inf if high is None else high
    # How much worse it gets at best and at worst.
    best, worst = (-high, -low) if worse == "lower" else (low, high)
    return "worse" if best > margin else "holds" if worst <= margin else "not shown"


def harm(tested: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in words each guardrail whose whole interval lies beyond its margin."""
    return [
        f"{row['title']} {spread(row)}, {row['worse']} by more than {row['margin']:.1%}"
        for row in tested
        if row["state"] == "worse"
    ]


def why_unproven(row: Mapping[str, Any], control: str) -> str:
    """Return in words what the data leave open about a guardrail, and what would help."""
    if row["low"] is None and (few := row.get("few")):
        return f"the guardrail {row['name']}: {too_few(few)}"
    if row["state"] == NO_SIZE:
        return (
            f"the guardrail {row['name']} has no relative size, as it is 0 in {control!r} or does not vary: wait "
            "until there is some of it, or take it out of guardrails"
        )
    enough = f" (about {row['viewers_needed']:,} viewers would show it)" if row["viewers_needed"] else ""
    return f"{row['title']} {spread(row)} is not shown to be {row['worse']} by at most {row['margin']:.1%}{enough}"


def ranker(one: Mapping[str, Any]) -> str:
    """Return in words the model that ranked, with the weights and rules that the log holds."""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in one["weights"].items())
    parts = {"weights": weights, "rules": "; ".join(one["rules"])}
    said = " and ".join(f"the {name} {part}" for name, part in parts.items() if part)
    return f"{one['model']} with {said}" if said else str(one["model"])


def spread(row: Mapping[str, Any]) -> str:
    """Format a difference of shares or of a metric, with its 95 % interval."""
    if "relative" in row:
        if row["low"] is None:
            return "–"
        return f"{sized(row)} {span(row)}"
    return f"{row['difference']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}]"
