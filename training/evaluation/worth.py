"""What orders are worth: the expected amount of each outcome per exposure, and their weighed sum.

Amounts are corrected for position bias, with the estimator of `training.evaluation.expected_labels`
for one outcome at a time. In shapes, N is the number of rows, O of outcomes and S of slates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serve.ranking.exploration import log_weight as log_odds
from training.data.dataset import Dataset
from training.evaluation.counterfactual import Estimate, at_once
from training.evaluation.expected_labels import expected_labels
from training.evaluation.metrics import Z95, Contender, Values, more_log
from training.evaluation.slates import F64, I64, Slates, midranks, sink_non_finite
from training.examination.examination import Examination


@dataclass(frozen=True)
class Worth:
    """Estimates by outcome and contender, in the outcome's unit, all on the same slates.

    If an outcome's rows do not support estimates, it has none, and its `about` says why; this is
    the first result of `expected_labels`. `curve` gives each outcome the number of its curve of
    examination. Outcomes with the same curve share its error.
    """

    # [S], the number of each slate's viewer.
    cluster: I64
    about: Mapping[str, Mapping[str, Any]]
    estimates: Mapping[str, Mapping[str, Estimate]]
    curve: Mapping[str, int]

    def compared(self, outcome: str, order: str, against: str, errors: float = Z95) -> dict[str, Any] | None:
        """Return the amount of an outcome in two orders, its change, and its relative change.

        `value` is that of the `order`, `base` that of the other; then come `change` and
        `relative`. Each is [estimate, low, high] at 95 %. `viewers` says on how many viewers the
        change rests, `reach` how far so many standard `errors` of `relative` reach, and `more_log`
        how many times this log it would take to show the change, as it stands: at most 1 if it is
        shown, and null if there is none. The result is None if the rows do not support the outcome.
        """
        if not (found := self.estimates[outcome]):
            return None
        base, change = found[against], found[order].minus(found[against])
        ratio = change.value / base.value
        # The base is uncertain too, which the delta method takes into account.
        relative = replace(change.minus(base.times(ratio)).times(1 / base.value), value=ratio)
        told = {"value": found[order], "base": base, "change": change, "relative": relative}
        result: dict[str, Any] = {k: [one.value, *one.interval(self.cluster)] for k, one in told.items()}
        result["viewers"], reach = change.viewers(self.cluster), errors * relative.error(self.cluster)
        return result | {"reach": reach, "more_log": more_log(ratio, reach, result["viewers"])}

    def at_once(self, outcome: str, against: str) -> float:
        """Return of how many errors an outcome's intervals must be to hold for all orders."""
        found = self.estimates[outcome]
        return at_once([one.minus(found[against]) for one in found.values()], self.cluster)

    def weighed(
        self, contender: str, weights: Mapping[str, float], against: str | None = None
    ) -> Estimate | None:
        """Return the sum of weights times amounts, minus that of `against` if it is given.

        Its influence is the weighed sum of the influences. So the errors of outcomes that go
        together add up, and others cancel. It is None if the rows do not support an outcome whose
        weight is not 0.
        """
        total, shift = Estimate(0.0, np.zeros(len(self.cluster))), np.zeros(len(self.curve))
        for name, weight in weights.items():
            found = self.estimates[name]
            if weight and not found:
                return None
            if weight:
                one = (found[contender].minus(found[against]) if against else found[contender]).times(weight)
                total = Estimate(total.value + one.value, total.influence + one.influence)
                shift[self.curve[name]] += one.shift
        # An error of a curve shifts all its outcomes together. Different curves are independent.
        return replace(total, shift=float(np.hypot.reduce(shift)))


def expected_amounts(
    data: Dataset,
    orders: Mapping[str, Values],
    scales: Mapping[str, float],
    examinations: Sequence[Examination],
    odds: Sequence[F64],
) -> Worth:
    """Estimate the amounts per exposure that each contender's order would earn.

    `orders` holds the scores `[N]` of each contender. `scales` gives the amount of a share of 1 for
    each outcome, in the order of the dataset's columns. Each outcome has its examination, and
    `odds` `[N, columns]`, such as those of `odds_of`, from which its attraction is modelled.
    """
    whole = Slates(data.outcomes[:, 0], data.slate, data.viewer)
    numbers = np.unique(data.slate)
    about: dict[str, Mapping[str, Any]] = {}
    estimates: dict[str, dict[str, Estimate]] = {}
    for k, (name, scale) in enumerate(scales.items()):
        known, part = ~np.isnan(data.outcomes[:, k]), data.of(k)
        slates = Slates(part.label, part.slate, part.viewer)
        contenders = {key: Contender.of(slates, order[known], None) for key, order in orders.items()}
        at = np.searchsorted(numbers, np.unique(part.slate))
        of_outcome = contenders, part.position, examinations[k], part.weight, odds[k][known]
        about[name], found = expected_labels(*of_outcome)
        estimates[name] = {}
        for key, one in found.items():
            # The mean is only over the slates where the outcome is known.
            influence = np.zeros(len(whole))
            influence[at] = one.influence * (len(whole) / len(slates))
            estimates[name][key] = replace(one, influence=influence).times(scale)
    distinct = list(examinations)
    curve = {name: distinct.index(one) for name, one in zip(scales, examinations, strict=True)}
    return Worth(whole.cluster, about, estimates, curve)


def odds_of(orders: Mapping[str, Values], predictions: Mapping[str, Values], outcome: int) -> F64:
    """Return the log odds `[N, contenders]` that each contender gives to outcome number `outcome`.

    They come from its prediction, shares `[N, O]`. If it does not predict this outcome, they come
    from the ranks of its order.
    """
    columns = []
    for name, order in orders.items():
        shares = predictions[name][:, outcome] if name in predictions else np.array([np.nan])
        if np.isnan(shares).all():
            shares = (midranks(sink_non_finite(order)) - 0.5) / len(order)
        columns.append(log_odds(sink_non_finite(shares)))
    return np.stack(columns, axis=1)
