"""Check the offline estimators on simulated logs, where the truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from training.data.dataset import Progress
from training.evaluation.attraction import attraction, ranked
from training.evaluation.counterfactual import ESTIMATORS, Counterfactual, Estimate
from training.examination.placements import Bins, place_counts
from training.experiment.offline.estimate import called
from training.experiment.offline.test_world import NUM_CANDIDATES, WorldSample, sample, true_values

NUM_VIEWERS = 300
# A 95 % interval must cover the truth in at least this share of runs.
MIN_COVERED = 0.92
# A scorer must get its true verdict in at least this share of runs, and the opposite one in at
# most MAX_OPPOSITE of them.
MIN_CORRECT = 0.8
MAX_OPPOSITE = 0.04
# True verdict on each scorer, compared with the scores that the orders were drawn from.
TRUE_VERDICTS = {"better": "better", "worse": "worse", "reversed": "worse"}


def check(runs: int, progress: Progress = lambda share: None) -> dict[str, Any]:
    """Estimate values on simulated logs of NUM_VIEWERS viewers, and compare with the truth.

    The result holds `runs`, `exposures` of a run, `truth` {scorer: value}; by estimator and scorer
    `covered`, the share of 95 % intervals that cover the true value, `covered_difference`, the same
    for the difference to `logging` (null for itself), `bias` and `called` {better | worse | no
    difference shown: share}; `held`: intervals cover the truth in at least MIN_COVERED of the runs,
    and each scorer gets its true verdict in at least MIN_CORRECT and the opposite in at most
    MAX_OPPOSITE.
    """
    truth = true_values()
    rows: list[dict[str, Any]] = []
    for number in range(runs):
        rows += _rows(sample(np.random.default_rng([0, number]), NUM_VIEWERS), truth, number)
        progress((number + 1) / runs)
    simulated: dict[str, dict[str, Any]] = {how: {} for how in ESTIMATORS}
    frame = pd.DataFrame(rows)
    for how, name in product(ESTIMATORS, truth):
        found = frame[(frame["how"] == how) & (frame["name"] == name)]
        simulated[how][name] = {
            "covered": float(found["covered"].mean()),
            "covered_difference": float(found["difference"].mean()) if name in TRUE_VERDICTS else None,
            "bias": float(found["value"].mean()) - truth[name],
            "called": found["called"].value_counts(normalize=True).sort_index().to_dict(),
        }
    return {
        "runs": runs,
        "exposures": len(sample(np.random.default_rng(0), NUM_VIEWERS).drawn),
        "truth": truth,
        **simulated,
        "held": all(_holds(name, one) for how in ESTIMATORS for name, one in simulated[how].items()),
    }


def _rows(world: WorldSample, truth: Mapping[str, float], seed: int) -> Iterator[dict[str, Any]]:
    """Yield by estimator and scorer the value, the truths covered, and the verdict."""
    bins = Bins(NUM_CANDIDATES)
    counts = place_counts(world.drawn.weight, bins, np.random.default_rng([1, seed]))
    known = Counterfactual(world.drawn, bins, counts)
    places = {name: ranked(odds, known.is_drawn) for name, odds in world.odds.items()}
    for name, odds in world.odds.items():
        worth = attraction(known, np.stack([world.drawn.weight, odds], axis=2))
        sums, logging = (known.value(places[one], worth, NUM_CANDIDATES) for one in (name, "logging"))
        for how, of in ESTIMATORS.items():
            ours = of(sums)
            apart = ours.minus(of(logging))
            yield {
                "how": how,
                "name": name,
                "value": ours.value,
                "covered": _covers(ours, world, truth[name]),
                "difference": _covers(apart, world, truth[name] - truth["logging"]),
                "called": called(apart.interval(world.drawn.cluster)),
            }


def _covers(estimate: Estimate, world: WorldSample, truth: float) -> bool:
    low, high = estimate.interval(world.drawn.cluster)
    return low <= truth <= high


def _holds(name: str, one: Mapping[str, Any]) -> bool:
    covered = one["covered"] >= MIN_COVERED
    if name not in TRUE_VERDICTS:
        return bool(covered)
    covered = covered and one["covered_difference"] >= MIN_COVERED
    other = "worse" if TRUE_VERDICTS[name] == "better" else "better"
    right, wrong = (one["called"].get(call, 0.0) for call in (TRUE_VERDICTS[name], other))
    return bool(covered and right >= MIN_CORRECT and wrong <= MAX_OPPOSITE)


def text(result: Mapping[str, Any]) -> str:
    """Format the result for people."""
    lines = [
        f"{result['runs']} simulated logs of {result['exposures']} exposures",
        "estimate  scorer    truth    bias     covered  difference  called better  worse",
    ]
    for how in ESTIMATORS:
        for name, one in result[how].items():
            better, worse = (one["called"].get(call, 0.0) for call in ("better", "worse"))
            apart = "–" if one["covered_difference"] is None else f"{one['covered_difference']:.1%}"
            lines.append(
                f"{how:<10}{name:<9}{result['truth'][name]:6.4f}  {one['bias']:+.4f}  {one['covered']:8.1%}"
                f"{apart:>12}{better:15.1%}{worse:7.1%}"
            )
    return "\n".join([*lines, "held" if result["held"] else "NOT held"])
