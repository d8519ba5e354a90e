"""Check the offline estimators where truth is known: simulated logs, the Open Bandit Dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import Progress
from training.experiment.offline.attraction import attraction, ranked
from training.experiment.offline.counterfactual import ESTIMATORS, Counterfactual, Estimate
from training.experiment.offline.estimate import called
from training.experiment.offline.open_bandit import open_bandit
from training.experiment.offline.open_bandit import text as open_bandit_text
from training.experiment.offline.placements import Bins, place_counts
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


def check(runs: int, obp: Path | None = None, progress: Progress = lambda share: None) -> dict[str, Any]:
    """Estimate values on simulated logs of NUM_VIEWERS viewers, and compare with the truth.

    The result holds `runs`, `exposures` of a run, `truth` {scorer: value}; by estimator and scorer
    `covered`, the share of 95 % intervals that cover the true value, `covered_difference`, the same
    for the difference to `logging` (null for itself), `bias` and `called` {better | worse | no
    difference shown: share}; `open_bandit`, the result of that function if `obp` is given; `held`:
    intervals cover the truth in at least MIN_COVERED of the runs, each scorer gets its true
    verdict in at least MIN_CORRECT and the opposite in at most MAX_OPPOSITE, and the real logs
    agree.

    Raises:
        TabrankError: `obp` does not hold the Open Bandit Dataset.
    """
    real = None if obp is None else open_bandit(obp)
    truth = true_values()
    found: defaultdict[tuple[str, str], list[_Run]] = defaultdict(list)
    for number in range(runs):
        for key, one in _one(sample(np.random.default_rng([0, number]), NUM_VIEWERS), truth, number).items():
            found[key].append(one)
        progress((number + 1) / runs)
    simulated: dict[str, dict[str, Any]] = {how: {} for how in ESTIMATORS}
    for (how, name), rows in found.items():
        simulated[how][name] = _rates(rows, truth[name])
        if name not in TRUE_VERDICTS:
            simulated[how][name]["covered_difference"] = None
    result: dict[str, Any] = {
        "runs": runs,
        "exposures": len(sample(np.random.default_rng(0), NUM_VIEWERS).drawn),
        "truth": truth,
        **simulated,
        "open_bandit": real,
    }
    result["held"] = all(_holds(name, one) for how in ESTIMATORS for name, one in simulated[how].items())
    result["held"] = result["held"] and (real is None or real["held"])
    return result


# Value, whether its interval and that of the difference cover the truth, verdict.
_Run = tuple[float, bool, bool, str]


def _one(world: WorldSample, truth: Mapping[str, float], seed: int) -> dict[tuple[str, str], _Run]:
    bins = Bins(NUM_CANDIDATES)
    counts = place_counts(world.drawn.weight, bins, np.random.default_rng([1, seed]))
    known = Counterfactual(world.drawn, bins, counts)
    places = {name: ranked(odds, known.is_drawn) for name, odds in world.odds.items()}
    runs: dict[tuple[str, str], _Run] = {}
    for name, odds in world.odds.items():
        worth = attraction(known, np.stack([world.drawn.weight, odds], axis=2))
        sums, logging = (known.value(places[one], worth, NUM_CANDIDATES) for one in (name, "logging"))
        for how, of in ESTIMATORS.items():
            ours = of(sums)
            apart = ours.minus(of(logging))
            difference = truth[name] - truth["logging"]
            covered = _covers(ours, world, truth[name]), _covers(apart, world, difference)
            runs[how, name] = ours.value, *covered, called(apart.interval(world.drawn.cluster))
    return runs


def _covers(estimate: Estimate, world: WorldSample, truth: float) -> bool:
    low, high = estimate.interval(world.drawn.cluster)
    return low <= truth <= high


def _rates(rows: list[_Run], truth: float) -> dict[str, Any]:
    values, covered, differences, verdicts = zip(*rows, strict=True)
    return {
        "covered": float(np.mean(covered)),
        "covered_difference": float(np.mean(differences)),
        "bias": float(np.mean(values)) - truth,
        "called": {name: verdicts.count(name) / len(rows) for name in sorted(set(verdicts))},
    }


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
    if result["open_bandit"] is not None:
        lines.append(open_bandit_text(result["open_bandit"]))
    return "\n".join([*lines, "held" if result["held"] else "NOT held"])
