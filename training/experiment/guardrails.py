"""Guardrails of an experiment: exposures, degraded and slow answers by arm, with tests.

Letters: N exposures, V viewers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from serve.contract.experiment_metrics import Metric
from training.experiment.comparison import arm_of, best_after
from training.experiment.confidence_sequence import AnyLook, always_valid
from training.experiment.panel import Panel
from training.experiment.statistics import Effect, compare
from training.experiment.verdict import deciding, sized, span

# Rung of answers that no model ranked, in any arm.
FALLBACK = "fallback"
# Warn of a difference in degraded answers below this p-value, which is rarely due to chance, and
# if all of its interval is beyond this share of the answers: only an arm with a model can lack it.
FLAG_P = 0.01
FLAG_SHARE = 0.005


def by_arm(here: pd.DataFrame, arms: tuple[str, str]) -> dict[str, Any]:
    """Return by arm the exposures, shares of rungs and reasons, and latencies in ms."""
    found = {}
    for name in arms:
        mine = here[here["arm"] == name]
        num = max(len(mine), 1)
        counts = (mine[column].value_counts(sort=False) for column in ("rung", "degraded"))
        rungs, reasons = ((of_each / num).to_dict() for of_each in counts)
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
    """Return the shares of fallback, degraded and slow answers, with interval and test.

    `here` [N] are the exposures of the panel `people`. A share that does not vary has no test.
    Viewers are the unit of the variance. Slow answers are those above the p99 of both arms.
    """
    flags = [people.arm == arm for arm in arms]
    if min(int(mine.sum()) for mine in flags) < 2:
        return []
    rung, took_ms = here["rung"], here["latency_ms"]
    slow_ms = float(took_ms[here["arm"].isin(arms)].quantile(0.99))
    shares: dict[str, tuple[str, Any]] = {
        "fallback": ("answers by fallback", rung == FALLBACK),
        "degraded": ("answers not by rung full", rung.notna() & (rung != "full")),
        "slow": (f"answers slower than {slow_ms:.1f} ms, the p99 of both arms", took_ms > slow_ms),
    }
    # The panel numbers viewers in the same order.
    viewer = pd.factorize(here["viewer"])[0]
    counted = {"exposures": None} | {name: is_one for name, (_, is_one) in shares.items()}
    sums = {name: np.bincount(viewer, is_one).astype(np.float64) for name, is_one in counted.items()}
    control, treatment = (arm_of(sums, mine) for mine in flags)
    num_viewers, best_at = control.count() + treatment.count(), best_after(people, arms)
    rows = []
    for name, (title, _) in shares.items():
        metric = Metric(name, title, "share of exposures", title, name, below="exposures")
        effect = compare(metric, control, treatment, adjusted=False)
        base, share = (arm.mean(name) / arm.mean("exposures") for arm in (control, treatment))
        if effect is not None:
            interval: Effect | AnyLook = effect if ended else always_valid(effect, num_viewers, best_at)
            low, high, p = interval.low, interval.high, interval.p
        elif base != share:
            # All answers of one arm and none of the other: nothing varies. Fisher's exact test.
            p = float(fisher_exact([[treatment.count(), 0], [0, control.count()]]).pvalue)
            low = high = share - base
        else:
            continue
        row = {"name": name, "title": title, "control": base, "treatment": share, "difference": share - base}
        # No share rises by more than 1: slow answers have no margin.
        margin = 1.0 if name == "slow" else FLAG_SHARE
        rows.append(row | {"low": low, "high": high, "p": p, "worse": "higher", "margin": margin})
    return rows


def warnings(tested: Sequence[Mapping[str, Any]], arms: tuple[str, str]) -> list[str]:
    """Return a warning if the arms were degraded unevenly."""
    for row in tested:
        is_large = max(row["low"], -row["high"]) > FLAG_SHARE
        if row["name"] in ("fallback", "degraded") and row["p"] < FLAG_P and is_large:
            return [
                f"the arms were degraded unevenly: {row['title']} are {row['treatment']:.2%} of {arms[1]!r} and "
                f"{row['control']:.2%} of {arms[0]!r} ({spread(row)}, p = {row['p']:.2g}); the effect includes "
                "this (degraded by, below, has the reasons)"
            ]
    return []


def of_metric(
    row: Mapping[str, Any], worse: Literal["lower", "higher"], margin: float, ended: bool
) -> list[dict[str, Any]]:
    """Return a metric's row as a test of a guardrail; none if it does not vary.

    The metric must not become `worse` by more than the margin, which is relative.
    """
    if row["effect"] is None:
        return []
    names = ("name", "title", "control", "treatment", "capped")
    interval = {**row["effect"], **deciding(row, ended)}
    return [{name: row[name] for name in names} | interval | {"worse": worse, "margin": margin}]


def harm(tested: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in words each guardrail whose whole interval is beyond its margin."""
    found = []
    for row in tested:
        # The margin of a metric is relative; without a relative size it cannot be judged.
        low, high = (row.get(f"relative_{end}", row[end]) for end in ("low", "high"))
        if low is not None and (high < -row["margin"] if row["worse"] == "lower" else low > row["margin"]):
            found.append(f"{row['title']} {spread(row)}, {row['worse']} by more than {row['margin']:.1%}")
    return found


def spread(row: Mapping[str, Any]) -> str:
    """Format a difference with its 95 % interval: of shares, or of a metric."""
    if "relative" in row:
        return f"{sized(row)} {span(row)}"
    return f"{row['difference']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}]"
