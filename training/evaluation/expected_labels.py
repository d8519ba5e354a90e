"""Expected labels: label events per exposure that the order of each contender would earn.

A candidate that moves from position k to k' is looked at θ(k') / θ(k) times as often, so its label
event counts that often. Where the shown order was drawn, the mean examination over draws replaces
θ(k), as in `training.evaluation.counterfactual`. Weights are clipped, and a model of attraction
stands in for the clipped part (Su, Dimakopoulou, Krishnamurthy and Dudík 2020, "Doubly robust
off-policy evaluation with shrinkage"). Letters: N rows, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.ranking.exploration import log_weight as log_odds
from training.evaluation.attraction import modelled
from training.evaluation.counterfactual import MAX_WEIGHT, MIN_EFFECTIVE, Estimate
from training.evaluation.metrics import Contender
from training.evaluation.slates import F64, I64, Slates, midranks
from training.examination.examination import Examination
from training.examination.placements import NUM_DRAWS, Bins, place_counts

# Clip the weights of rows whose order was not drawn at this value.
MAX_MOVED = 1.5
# Standard errors by which the logarithm of examination must differ from 0 at some position.
FALLS = 2.0
SEED = 0
# Count the draws of this many slates at once, to bound the memory.
_AT_ONCE = 1_000
_EXPLORE = "set `explore` for an arm in cluster.yaml"


@dataclass(frozen=True)
class ExpectedLabels:
    """Estimates by contender; without them `reason` says why the rows do not support any.

    `source` is that of the examination, `explored` the number of rows whose order was drawn, and
    `effective` the effective number of label events of each contender (Kish 1965).
    """

    cluster: I64
    source: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    effective: Mapping[str, float] = field(default_factory=dict)
    explored: int = 0
    reason: str | None = None

    def value(self, name: str) -> tuple[float | None, list[float] | None]:
        """Return the value of a contender and its 95 % interval."""
        if self.reason:
            return None, None
        return self.estimates[name].value, list(self.estimates[name].interval(self.cluster))

    def error(self, name: str) -> float | None:
        """Return the standard error of the value of a contender."""
        return None if self.reason else self.estimates[name].error(self.cluster)

    def difference(self, ours: str, theirs: str) -> tuple[float | None, float | None]:
        """Return by how much ours earns more than theirs, and the standard error."""
        if self.reason:
            return None, None
        found = self.estimates[ours].minus(self.estimates[theirs])
        return found.value, found.error(self.cluster)

    def to_json(self) -> dict[str, Any]:
        """Return the entry `expected_labels` of an evaluation."""
        is_learned = self.reason is None and self.source == "learned"
        note = f"examination is learned from orders as shown; to measure it, {_EXPLORE}"
        return {
            "source": self.source,
            "explored_rows": self.explored,
            "effective_events": dict(self.effective),
            "reason": self.reason,
            "note": note if is_learned else None,
        }


def expected_labels(
    contenders: Mapping[str, Contender],
    position: I64,
    examination: Examination,
    log_weight: F64 | None = None,
) -> ExpectedLabels:
    """Estimate the label events per exposure of each contender, all on the same slates.

    Each order puts the rows of a slate at their own positions, `position` `[N]`. `log_weight` `[N]`
    are the log weights of the draw of the shown order, NaN for rows that were not drawn.
    """
    slates = next(iter(contenders.values())).slates
    if reason := _unsupported(slates, examination):
        return ExpectedLabels(slates.cluster, examination.source, reason=reason)
    places = np.arange(position.max() + 1)
    theta = examination.at(places)
    # Change of log θ by one standard error at all positions alike.
    off = Examination(theta=examination.error).at(places)
    looked, looked_off = theta[position], off[position]
    drawn = np.zeros(len(position), bool) if log_weight is None else np.isfinite(log_weight)
    most = np.where(drawn, MAX_WEIGHT, MAX_MOVED)
    if log_weight is not None:
        looked[drawn], looked_off[drawn] = _over_draws(slates, position, log_weight, theta, off)
    odds = [
        log_odds((midranks(one.score) - 0.5) / len(position) if one.chance is None else one.chance)
        for one in contenders.values()
    ]
    label = slates.label.astype(np.float64)
    worth = modelled(label, theta[position], slates.cluster[slates.code], np.stack(odds, axis=1))
    estimates, effective = {}, {}
    for name, contender in contenders.items():
        place = placed(contender, position)
        weight = np.minimum(theta[place] / looked, most)
        earned = weight * label
        rest = theta[place] - weight * theta[position]
        rows = earned + rest * worth.value
        total = slates.total(rows)
        value = float(total.mean())
        shift = float((rows * (off[place] - looked_off)).sum() / len(slates))
        estimates[name] = Estimate(value, total - value + slates.total(worth.influence(rest)), shift)
        effective[name] = float(earned.sum() ** 2 / max((earned**2).sum(), 1e-12))
    least = min(effective.values())
    few = f"{least:.0f} effective label events, and {MIN_EFFECTIVE:.0f} are needed: measure more rows"
    reason = few if least < MIN_EFFECTIVE else None
    return ExpectedLabels(slates.cluster, examination.source, estimates, effective, int(drawn.sum()), reason)


def placed(contender: Contender, position: I64) -> I64:
    """Return the position `[N]` of each row if the contender orders the positions of its slate."""
    place = np.empty_like(position)
    place[contender.order] = position[np.lexsort((position, contender.slates.code))]
    return place


def _unsupported(slates: Slates, examination: Examination) -> str | None:
    """Return why the rows support no estimate, whatever their labels."""
    log_theta, error = np.log(examination.theta), np.asarray(examination.error)
    if examination.source == "ignored":
        return (
            "position bias is ignored, so every order earns the same: unset `position_bias` in the surface, "
            f"and {_EXPLORE} to measure examination"
        )
    if not (np.abs(log_theta) > FALLS * error).any():
        return (
            "examination does not change with position by two standard errors, so no order is shown to earn "
            f"more: {_EXPLORE} to measure it"
        )
    if 2 * int((slates.size >= 2).sum()) < len(slates):
        return "most slates have one candidate, so every order earns the same"
    return None if slates.cluster.any() else "all rows are of one viewer: measure more rows"


def _over_draws(slates: Slates, position: I64, log_weight: F64, theta: F64, off: F64) -> tuple[F64, F64]:
    """Return the mean of θ, and that of `off` weighted by θ, over the draws of each drawn row.

    `theta` and `off` are `[P]`; the results are in the order of the rows.
    """
    bins, rng = Bins(len(theta)), np.random.default_rng(SEED)
    of_bin = np.stack([np.bincount(bins.of, curve) / np.bincount(bins.of) for curve in (theta, theta * off)])
    rows = np.flatnonzero(np.isfinite(log_weight))
    code = np.unique(slates.code[rows], return_inverse=True)[1]
    means = np.empty((2, len(rows)))
    for begin in range(0, int(code.max(initial=-1)) + 1, _AT_ONCE):
        some = (begin <= code) & (code < begin + _AT_ONCE)
        cell = code[some] - begin, position[rows[some]]
        weight = np.full((int(cell[0].max()) + 1, len(theta)), -np.inf)
        weight[cell] = log_weight[rows[some]]
        means[:, some] = of_bin @ place_counts(weight, bins, rng)[cell].T / NUM_DRAWS
    return means[0], means[1] / means[0]
