"""Ranking and probability metrics. Letters: N rows, S slates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

F64 = NDArray[np.float64]
TIE_SEED = 0  # ties in score are broken at random, the same way in each evaluation


@dataclass(frozen=True)
class Slates:
    """The rows of an evaluation: `label` `[N]` 0/1 and the number of each row's `slate` `[N]`."""

    label: NDArray[np.float32]
    slate: NDArray[np.int64]

    def ndcg(self, score: NDArray[np.floating], k: int = 10) -> F64:
        """NDCG@k of each slate with two or more candidates and at least one positive, `[S]`, by slate number.

        Gain is the label, discount 1 / log2(1 + position) (Järvelin and Kekäläinen 2002).
        """
        tie = np.random.default_rng(TIE_SEED).random(len(score))
        order = np.lexsort((tie, -np.asarray(score, np.float64), self.slate))
        ideal = np.lexsort((-self.label, self.slate))
        _, size = np.unique(self.slate, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(size)[:-1]])
        position = np.arange(len(score)) - np.repeat(starts, size)
        discount = np.where(position < k, 1.0 / np.log2(position + 2.0), 0.0)
        gained = np.add.reduceat(self.label[order] * discount, starts)
        best = np.add.reduceat(self.label[ideal] * discount, starts)
        counted = (size >= 2) & (best > 0)
        return np.asarray(gained[counted] / best[counted], np.float64)


def ece(label: NDArray[np.float32], probability: NDArray[np.floating], bins: int = 15) -> float:
    """Expected calibration error over bins of equal count (Naeini et al. 2015, with equal-mass bins)."""
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(float(probability[p].mean()) - float(label[p].mean())) * len(p) for p in parts if len(p)]
    return float(sum(gaps) / len(order))


def reliability(
    label: NDArray[np.float32], probability: NDArray[np.floating], bins: int = 15
) -> list[tuple[float, float]]:
    """(mean prediction, observed rate) in bins of equal count."""
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(label)))
    return [(float(probability[p].mean()), float(label[p].mean())) for p in parts if len(p)]


def measure(slates: Slates, score: NDArray[np.floating], *, is_probability: bool) -> dict[str, float | None]:
    """`ndcg@10`, `auc` and, for probabilities, `logloss` and `ece`; null where the data do not define it."""
    ndcg = slates.ndcg(score)
    label = slates.label
    both = 0 < label.sum() < len(label)
    probability = np.clip(np.asarray(score, np.float64), 1e-7, 1 - 1e-7)
    return {
        "ndcg@10": float(ndcg.mean()) if len(ndcg) else None,
        "auc": float(roc_auc_score(label, score)) if both else None,
        "logloss": float(log_loss(label, probability, labels=[0, 1])) if is_probability else None,
        "ece": ece(label, probability) if is_probability else None,
    }


def paired(
    slates: Slates, ours: NDArray[np.floating], theirs: NDArray[np.floating]
) -> dict[str, float | None]:
    """The mean NDCG@10 difference over slates, and its standard error."""
    difference = slates.ndcg(ours) - slates.ndcg(theirs)
    if len(difference) < 2:
        return {"ndcg@10": None, "se": None}
    se = difference.std(ddof=1) / np.sqrt(len(difference))
    return {"ndcg@10": float(difference.mean()), "se": float(se)}
