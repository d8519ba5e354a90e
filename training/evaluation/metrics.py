"""Measures of scores: ranking and probability metrics, with 95 % intervals.

A measure that the data do not define is None: an AUC of one label, the order of slates of one
candidate. Letters: N rows, S slates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.evaluation.bootstrap import Bootstrap, interval
from training.evaluation.slates import F64, I64, TIE_SEED, Slates, pairs_won, sink_non_finite
from training.network.calibrate import fit_platt

Values = NDArray[np.floating]
Labels = NDArray[np.float32]
# Keep probabilities this far from 0 and 1, where a logloss would be infinite.
LEAST = 1e-7


@dataclass(frozen=True, eq=False)
class Contender:
    """Scores `[N]` of one contender on the rows of `slates`, with values that measures share."""

    slates: Slates
    score: F64
    # [N], probabilities; None if the score is not a probability.
    chance: F64 | None

    @classmethod
    def of(cls, slates: Slates, score: Values, chance: Values | None) -> Contender:
        """Return the contender of raw scores and probabilities."""
        return cls(slates, sink_non_finite(score), None if chance is None else probability(chance))

    @cached_property
    def order(self) -> I64:
        """Order of the rows by score within each slate, `[N]`."""
        return self.slates.order(self.score)

    @cached_property
    def ndcg(self) -> F64:
        """NDCG@10 of each slate that can be ranked."""
        return self.slates.rank(self.order).ndcg(10)

    @cached_property
    def slate_auc(self) -> F64:
        """AUC inside each slate with both labels."""
        return self.slates.auc(self.score)

    @cached_property
    def auc(self) -> float | None:
        """AUC over all rows."""
        return None if self.won is None else float(self.won.sum() / 2 / self._num_pairs)

    @cached_property
    def won(self) -> F64 | None:
        """Number of pairs that each row won, `[N]`; None where all rows have one label."""
        return pairs_won(self.slates.label > 0, self.score) if self._num_pairs else None

    @cached_property
    def loss(self) -> F64 | None:
        """Logloss of each row, `[N]`."""
        return None if self.chance is None else row_logloss(self.slates.label, self.chance)

    @property
    def _num_pairs(self) -> float:
        num_positive = float(self.slates.positives.sum())
        return num_positive * (len(self.slates.label) - num_positive)

    def measures(self) -> dict[str, float | None]:
        """Return all measures; those of probabilities are None for other scores.

        `ndcg@10`, `ndcg@5`, `map`, `mrr`: means over the slates of two or more candidates with a
        positive; ties are broken at random with a fixed seed. `slate_auc`: mean over the slates
        with both labels. `auc`, `logloss` (nats), `ece` and `rce` (%): over all rows.
        """
        label, ranking = self.slates.label, self.slates.rank(self.order)
        return {
            "ndcg@10": mean(self.ndcg),
            "auc": self.auc,
            "logloss": None if self.loss is None else mean(self.loss),
            "ece": None if self.chance is None else ece(label, self.chance),
            "ndcg@5": mean(ranking.ndcg(5)),
            "map": mean(ranking.average_precision()),
            "mrr": mean(ranking.reciprocal_rank()),
            "slate_auc": mean(self.slate_auc),
            "rce": None if self.chance is None else rce(label, self.chance),
        }

    def intervals(self, bootstrap: Bootstrap) -> dict[str, list[float] | None]:
        """Return 95 % intervals [low, high] of `ndcg@10`, `auc`, `logloss` and `slate_auc`."""
        slates = self.slates
        loss = None if self.loss is None else bootstrap.ratio(slates.total(self.loss), slates.size)
        draws = {
            "ndcg@10": _mean_draws(bootstrap, self.ndcg, slates.rankable),
            "auc": None if self.won is None else bootstrap.auc(slates, self.won),
            "logloss": loss,
            "slate_auc": _mean_draws(bootstrap, self.slate_auc, slates.mixed),
        }
        return {name: None if drawn is None else interval(drawn) for name, drawn in draws.items()}


def calibrated(label: Labels, score: Values, examination: F64 | float = 1.0) -> F64:
    """Map any score to probabilities `[N]`, by Platt's map fitted on the same rows.

    They are of the label as shown, with the `examination` `[N]` of each row's position.

    The map uses the labels of these rows, which no contender does: a model that beats it beats the
    score with any calibration. It takes the better fit of the score and its signed log(1 +
    |score|), so a heavy tail is not a handicap.
    """

    def fitted(x: F64) -> F64:
        platt = fit_platt(x, label, examination)
        logit = np.clip(platt.a * x + platt.b, -50.0, 50.0)
        return np.asarray(examination / (1.0 + np.exp(-logit)), np.float64)

    score = sink_non_finite(score)
    chances = fitted(score), fitted(np.sign(score) * np.log1p(np.abs(score)))
    return min(chances, key=lambda chance: float(row_logloss(label, chance).mean()))


def probability(score: Values) -> F64:
    """Clip scores `[N]` to probabilities with a finite logarithm."""
    return np.clip(np.asarray(score, np.float64), LEAST, 1 - LEAST)


def row_logloss(label: Labels, chance: F64) -> F64:
    """Return −log of the probability of each row's label, `[N]`, in nats."""
    return np.asarray(-np.log(np.where(label > 0, chance, 1.0 - chance)), np.float64)


def rce(label: Labels, chance: F64) -> float | None:
    """Return the relative cross entropy: the % by which the logloss is below that of the base rate.

    Belli et al. 2020, "Privacy-Aware Recommender Systems Challenge on Twitter's Home Timeline".
    """
    rate = float(np.mean(label, dtype=np.float64))
    if not 0 < rate < 1:
        return None
    naive = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    return float(100.0 * (1.0 - row_logloss(label, chance).mean() / naive))


def ece(label: Labels, chance: Values, bins: int = 15) -> float | None:
    """Return the expected calibration error: |mean prediction − rate| over bins of equal count.

    The bins are weighted by their rows (Naeini, Cooper and Hauskrecht 2015, with the equal-mass
    bins of Nixon et al. 2019).
    """
    if not len(label):
        return None
    gaps = [abs(p - y) * n for p, y, n in _bins(label, np.asarray(chance, np.float64), bins)]
    return float(sum(gaps) / len(label))


def reliability(label: Labels, chance: Values, bins: int = 15) -> list[tuple[float, float]]:
    """Return (mean prediction, observed rate) in bins of equal count, lowest predictions first."""
    return [(p, y) for p, y, _ in _bins(label, np.asarray(chance, np.float64), bins)]


def deciles(label: Labels, score: Values) -> dict[str, list[float] | None]:
    """Return `lift` and `gain` by score, highest first, in ten parts of equal count.

    `lift` `[10]`: rate of each part over the base rate. `gain` `[11]`: share of all positives down
    to the end of each part, from 0 (Ling and Li 1998, "Data Mining for Direct Marketing").
    """
    num_rows, num_positive = len(label), float(label.sum(dtype=np.float64))
    if num_rows < 10 or not num_positive:
        return {"lift": None, "gain": None}
    tie = np.random.default_rng(TIE_SEED).random(num_rows)
    hit = np.asarray(label, np.float64)[np.lexsort((tie, -np.asarray(score, np.float64)))]
    edges = np.arange(11) * num_rows // 10
    found = np.concatenate([[0.0], np.cumsum(hit)])[edges]
    lift = np.diff(found) / np.diff(edges) * (num_rows / num_positive)
    return {"lift": lift.tolist(), "gain": (found / num_positive).tolist()}


def mean(values: F64) -> float | None:
    """Return the mean; None for no values."""
    return float(values.mean()) if len(values) else None


def _mean_draws(bootstrap: Bootstrap, values: F64, where: NDArray[np.bool_]) -> F64 | None:
    """Return draws of the mean of `values`, one for each slate of the mask `where` `[S]`."""
    if not len(values):
        return None
    spread = np.zeros(len(where))
    spread[where] = values
    return bootstrap.ratio(spread, where.astype(np.float64))


def _bins(label: Labels, chance: F64, bins: int) -> list[tuple[float, float, int]]:
    """Return (mean prediction, rate, rows) of each bin."""
    parts = np.array_split(np.argsort(chance, kind="stable"), min(bins, len(label)))
    return [
        (float(chance[p].mean()), float(label[p].mean(dtype=np.float64)), len(p)) for p in parts if len(p)
    ]
