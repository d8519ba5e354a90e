"""Guardrails of an experiment: degraded and slow answers by arm, with a test of each difference.

Letters: N exposures, V viewers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact

from serve.contract.experiment_metrics import Metric
from training.experiment.comparison import arm_of, best_after
from training.experiment.confidence_sequence import AnyLook, always_valid
from training.experiment.panel import Panel
from training.experiment.statistics import Effect, compare

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
            deciding: Effect | AnyLook = effect if ended else always_valid(effect, num_viewers, best_at)
            low, high, p = deciding.low, deciding.high, deciding.p
        elif base != share:
            # All answers of one arm and none of the other: nothing varies. Fisher's exact test.
            p = float(fisher_exact([[treatment.count(), 0], [0, control.count()]]).pvalue)
            low = high = share - base
        else:
            continue
        row = {"name": name, "title": title, "control": base, "treatment": share, "difference": share - base}
        rows.append(row | {"low": low, "high": high, "p": p})
    return rows


def warnings(tested: Sequence[Mapping[str, Any]], arms: tuple[str, str]) -> list[str]:
    """Return a warning if the arms were degraded unevenly."""
    for row in tested:
        is_large = max(row["low"], -row["high"]) > FLAG_SHARE
        if row["name"] != "slow" and row["p"] < FLAG_P and is_large:
            return [
                f"the arms were degraded unevenly: {row['title']} are {row['treatment']:.2%} of {arms[1]!r} and "
                f"{row['control']:.2%} of {arms[0]!r} ({spread(row)}, p = {row['p']:.2g}); the effect includes "
                "this (degraded by, below, has the reasons)"
            ]
    return []


def spread(row: Mapping[str, Any]) -> str:
    """Format a difference of shares with its 95 % interval."""
    return f"{row['difference']:+.2%} [{row['low']:+.2%}, {row['high']:+.2%}]"
