"""Measures of scores: ranking and probability metrics, with 95 % intervals.

A measure that the data do not define is None, such as an AUC without both labels, or NDCG if every
slate has one candidate. In shapes, N is the number of rows, S of slates and V of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from serve.model.graph import Calibration
from training.evaluation.slates import F64, I64, Slates, pairs_won, sink_non_finite
from training.network.calibrate import fit_platt

Values = NDArray[np.floating]
Labels = NDArray[np.float32]
# A value and its standard error, or neither.
Told = tuple[float | None, float | None]
# Probabilities keep this distance from 0 and 1, where a logloss would be infinite.
LEAST = 1e-7
Z95 = 1.959964
# A difference that rests on fewer viewers than this says nothing, because its standard error is
# chance too. If gains are nine times as frequent as losses, and no larger on average, two standard
# errors show a gain in 43 % of logs with 6 events, and with this limit in at most 5 % of any.
MIN_VIEWERS = 20


class Terms(NamedTuple):
    """Values `[V]` whose mean is a measure, and the number `[V]` of the viewer of each value."""

    values: F64
    cluster: I64


@dataclass(frozen=True, eq=False)
class Contender:
    """Scores of one contender on the rows of `slates`, with intermediate values of its measures."""

    slates: Slates
    # [N], the scores by which it orders.
    score: F64
    # [N], the probabilities of the label as shown; None if it predicts none.
    chance: F64 | None
    # [N], the predicted label if somebody looks at the candidate, or else the score.
    share: F64

    @classmethod
    def of(
        cls, slates: Slates, score: Values, chance: Values | None, share: Values | None = None
    ) -> Contender:
        """Make a contender of raw scores and probabilities. By default, `share` is the score."""
        score = sink_non_finite(score)
        share = score if share is None else sink_non_finite(share)
        return cls(slates, score, None if chance is None else probability(chance), share)

    def take(self, rows: NDArray[np.bool_]) -> Contender:
        """Return the contender on only the rows of this mask."""
        chance = None if self.chance is None else self.chance[rows]
        return Contender(self.slates.take(rows), self.score[rows], chance, self.share[rows])

    @cached_property
    def order(self) -> I64:
        """Order of the rows by score within each slate, `[N]`."""
        return self.slates.order(self.score)

    @cached_property
    def ndcg(self) -> F64:
        """NDCG@10 of each slate that can be ranked."""
        return self.slates.ndcg(self.order)

    @cached_property
    def terms(self) -> dict[str, Terms]:
        """The terms of `ndcg@10`, `auc` and `logloss`; an undefined measure has no values."""
        slates, nothing = self.slates, Terms(np.empty(0), np.empty(0, np.int64))
        found = {"ndcg@10": Terms(self.ndcg, slates.cluster[slates.rankable]), "auc": nothing}
        if 0 < slates.positives.sum() < len(slates.label):
            found["auc"] = Terms(self._auc_of_slates(), slates.cluster)
        if self.chance is None:
            return found | {"logloss": nothing}
        return found | {"logloss": Terms(row_logloss(slates.label, self.chance), slates.cluster[slates.code])}

    def _auc_of_slates(self) -> F64:
        """Return for each slate `[S]` the AUC plus S times the slate's influence on it.

        The mean of these values is the AUC. Its standard error over viewers is that of Obuchowski
        (1997, "Nonparametric analysis of clustered ROC curve data"), because an AUC is a sum over
        pairs of rows.
        """
        slates, negatives = self.slates, self.slates.size - self.slates.positives
        num_positive, num_negative = slates.positives.sum(), negatives.sum()
        won = slates.total(pairs_won(slates.label > 0, self.share)) / (num_positive * num_negative)
        value = won.sum() / 2
        influence = won - value * (slates.positives / num_positive + negatives / num_negative)
        return np.asarray(value + len(slates) * influence, np.float64)

    def measures(self) -> dict[str, float | None]:
        """Return all measures. Those of probabilities are None if the scores are none.

        `ndcg@10` is the mean over the slates with two or more candidates and a gain. Ties are
        broken at random with a fixed seed. `auc`, for a label above 0, `logloss` in nats, and `ece`
        are over all rows.
        """
        found = {name: mean(terms.values) for name, terms in self.terms.items()}
        return found | {"ece": None if self.chance is None else ece(self.slates.label, self.chance)}

    def intervals(self) -> dict[str, list[float] | None]:
        """Return 95 % intervals [low, high] of the measures that have `terms`."""
        return {name: interval(*mean_and_error(*terms)) for name, terms in self.terms.items()}

    def minus(self, other: Contender, measure: str, least: int = MIN_VIEWERS) -> Told:
        """Return the difference to another contender on the same rows, and its standard error.

        Both are None if the difference rests on fewer viewers than `least`.
        """
        ours, theirs = self.terms[measure], other.terms[measure]
        if len(ours.values) != len(theirs.values):
            return None, None
        apart, cluster = ours.values - theirs.values, ours.cluster
        # Where no value differs, so do none of the viewers who are yet to come.
        if viewers_behind(apart, cluster) < least and (apart.any() or len(np.unique(cluster)) < least):
            return None, None
        return mean_and_error(apart, cluster)


def mean_and_error(values: F64, cluster: I64) -> Told:
    """Return the mean of values `[V]` and its cluster-robust standard error, for clusters `[V]`.

    Both are None if there are fewer than two clusters. The mean is a ratio of cluster totals. Its
    variance is linearised: the sum over G clusters of the squared total of residuals, times
    G / (G − 1), divided by V² (Cochran 1977, section 6.3; Cameron and Miller 2015, "A
    practitioner's guide to cluster-robust inference", section II). If each cluster has one value,
    this is the usual standard error of a mean.
    """
    code = np.unique(cluster, return_inverse=True)[1]
    num = int(code.max(initial=-1)) + 1
    if num < 2:
        return None, None
    average = float(values.mean())
    residual = np.bincount(code, weights=values - average)
    return average, float(np.sqrt(residual @ residual * num / (num - 1)) / len(values))


def viewers_behind(values: F64, cluster: I64) -> float:
    """Return on how many clusters `[V]` the sum of values `[V]` rests; 0 if all values are 0.

    It is (Σ t²)² / Σ t⁴ over the clusters' totals t: n if n of them are equal and the others 0, and
    about a third of them if they are normal. Twice this number are the degrees of freedom of the
    sum's estimated variance (Satterthwaite 1946).
    """
    total = np.bincount(np.unique(cluster, return_inverse=True)[1], weights=values) ** 2
    return float(total.sum() ** 2 / (total @ total)) if total.any() else 0.0


def more_log(apart: float, reach: float, viewers: float) -> float | None:
    """Return how many times this log it would take to show a difference, if it is `apart` in truth.

    It is at most 1 if the difference is shown: if it is larger than the `reach` of its interval,
    and rests on enough `viewers`. A reach falls with the root of the log. It is None if nothing
    differs.
    """
    return max((reach / apart) ** 2, MIN_VIEWERS / viewers) if apart and viewers else None


def is_shown(found: Mapping[str, Any]) -> bool:
    """Return whether a difference with the key `more_log` is shown."""
    return found["more_log"] is not None and found["more_log"] <= 1


def interval(value: float | None, error: float | None) -> list[float] | None:
    """Return the 95 % interval of a value with this standard error."""
    return None if value is None or error is None else [value - Z95 * error, value + Z95 * error]


def calibrated(label: Labels, score: Values, examination: F64 | float = 1.0) -> F64:
    """Map any score to probabilities `[N]` of the label as shown, by Platt's method.

    `examination` `[N]` is that of each row's position. The map is fitted to the labels of these
    same rows, which favours the score: a model that beats it beats the score with any calibration.
    The map is of the score or of its signed log(1 + |score|), whichever fits better, so that a
    heavy tail is no handicap.
    """

    def fitted(x: F64) -> F64:
        platt = fit_platt(x, label, examination)
        logit = np.clip(platt.a * x + platt.b, -50.0, 50.0)
        return np.asarray(examination / (1.0 + np.exp(-logit)), np.float64)

    score = sink_non_finite(score)
    chances = fitted(score), fitted(np.sign(score) * np.log1p(np.abs(score)))
    return min(chances, key=lambda chance: float(row_logloss(label, chance).mean()))


def fit_if_better(logit: F64, label: Labels, examination: F64, group: I64) -> Calibration:
    """Return the map of `fit_platt`, or the identity unless the map helps on rows it has not seen.

    The rows are halved by `group` `[N]`, their viewers, and each half is measured with the map of
    the other half. The map is kept if it lowers the logloss by more than one standard error, with
    groups as clusters. If a half lacks one of the labels, the answer is the identity.
    """

    def loss(found: Calibration) -> F64:
        return row_logloss(label, probability(examination * expit(found.a * logit + found.b)))

    identity, gain = Calibration(1.0, 0.0), np.zeros(len(logit))
    number = np.unique(group, return_inverse=True)[1]
    for rows in (number % 2 > 0, number % 2 == 0):
        if not 0 < label[rows].sum() < rows.sum():
            return identity
        found = fit_platt(logit[rows], label[rows], examination[rows])
        gain[~rows] = (loss(identity) - loss(found))[~rows]
    gained = np.bincount(number, gain)
    return fit_platt(logit, label, examination) if gained.sum() > np.linalg.norm(gained) else identity


def probability(score: Values) -> F64:
    """Clip scores `[N]` to probabilities with a finite logarithm."""
    return np.clip(np.asarray(score, np.float64), LEAST, 1 - LEAST)


def row_logloss(label: Labels, chance: F64) -> F64:
    """Return −log of the probability of each row's label, `[N]`, in nats.

    For a label between 0 and 1, this is the cross-entropy.
    """
    return np.asarray(-(label * np.log(chance)) - (1.0 - label) * np.log1p(-chance), np.float64)


def ece(label: Labels, chance: Values, bins: int = 15) -> float | None:
    """Return the expected calibration error: the mean of |mean prediction − rate| over bins.

    The bins have equal counts, as in Nixon et al. 2019, and are weighted by their rows (Naeini,
    Cooper and Hauskrecht 2015).
    """
    if not len(label):
        return None
    gaps = [abs(p - y) * n for p, y, n in _bins(label, np.asarray(chance, np.float64), bins)]
    return float(sum(gaps) / len(label))


def reliability(label: Labels, chance: Values, bins: int = 15) -> list[list[float]]:
    """Return [mean prediction, observed rate] for bins of equal count, from low to high."""
    return [[p, y] for p, y, _ in _bins(label, np.asarray(chance, np.float64), bins)]


def mean(values: F64) -> float | None:
    """Return the mean, or None if there are no values."""
    return float(values.mean()) if len(values) else None


def _bins(label: Labels, chance: F64, bins: int) -> list[tuple[float, float, int]]:
    """Return (mean prediction, rate, rows) of each bin."""
    parts = np.array_split(np.argsort(chance, kind="stable"), min(bins, len(label)))
    return [
        (float(chance[p].mean()), float(label[p].mean(dtype=np.float64)), len(p)) for p in parts if len(p)
    ]
