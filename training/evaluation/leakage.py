"""Guard against target leakage: find features that predict the label all by themselves.

In shapes, N is the number of rows, F of numeric columns, K of category columns, and M of the values
of a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.evaluation.slates import F64, auc

Sign = Literal["value", "missing"]
# Without leakage, no column reaches this AUC alone.
SUSPECT_AUC = 0.95
# An AUC is only computed from at least this many rows of either label.
MIN_EACH = 20
# At most this many rows are used. With them, the standard error of an AUC is far below 0.01.
MOST_ROWS = 200_000
FOLDS = 5
# A category's rate is smoothed as if this many more rows had the base rate.
PRIOR_ROWS = 1.0


@dataclass(frozen=True)
class Suspect:
    """A feature that alone almost determines the label, by its value or by being missing."""

    feature: str
    sign: Sign
    auc: float
    rows: int

    def __str__(self) -> str:
        subject = "alone" if self.sign == "value" else "merely by being missing or present"
        return (
            f"feature {self.feature!r} {subject} ranks {self.rows} rows with AUC {self.auc:.3f}: is its value known "
            "when the ranking is made? If all fields that it reads are, write known_before = true at them; if not, "
            "remove the feature or, in a table of viewers or candidates, give each value the ts_ms from which it holds"
        )


def suspects(data: Dataset) -> list[Suspect]:
    """Return the features that alone separate the labels, with the worst first.

    A feature is suspect if its AUC is ≥ SUSPECT_AUC or ≤ 1 − SUSPECT_AUC. The score of a number is
    its value. The score of a category is the label's rate at its value in the other folds of
    slates, so that a value that occurs only once carries no information. The score of a set is the
    mean of its values' rates.
    """
    rows = np.arange(0, len(data), -(-len(data) // MOST_ROWS) or 1)
    label = data.label[rows] > 0
    fold = fold_of(data.slate[rows])
    found = []
    for j, name in enumerate(data.columns.numeric):
        values = data.matrix.numeric[rows, j].astype(np.float64)
        found += _judge(name, values, np.isfinite(values), label)
    for name, part in data.columns.category_parts():
        hashes = data.matrix.category[rows, part]
        found += _judge(name, rates(hashes, label, fold), (hashes != 0).any(axis=1), label)
    return sorted(found, key=lambda suspect: -abs(suspect.auc - 0.5))


def fold_of(slate: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold `[N]` of each row's slate, drawn at random: logs have rhythms."""
    slates, number = np.unique(slate, return_inverse=True)
    return np.random.default_rng(0).integers(FOLDS, size=len(slates))[number]


def _judge(name: str, score: F64, present: NDArray[np.bool_], label: NDArray[np.bool_]) -> list[Suspect]:
    """Return the stronger of two signs, the value and being missing, if it is suspect."""
    signs: tuple[tuple[Sign, F64, NDArray[np.bool_]], ...] = (
        ("value", score[present], label[present]),
        ("missing", present.astype(np.float64), label),
    )
    found = [Suspect(name, sign, _auc(values, which), len(which)) for sign, values, which in signs]
    worst = max(found, key=lambda suspect: abs(suspect.auc - 0.5))
    return [worst] if abs(worst.auc - 0.5) >= SUSPECT_AUC - 0.5 else []


def _auc(score: F64, label: NDArray[np.bool_]) -> float:
    """Return the AUC, or ½ if there are too few rows."""
    if min(label.sum(), (~label).sum()) < MIN_EACH:
        return 0.5
    return auc(label, score) or 0.0


def rates(hashes: NDArray[np.uint64], label: NDArray[np.bool_], fold: NDArray[np.int64]) -> F64:
    """Return for each row `[N]` the mean rate of its values `[N, M]` in the other folds."""
    values, code = np.unique(hashes, return_inverse=True)
    code = code.reshape(hashes.shape)
    is_value = hashes != 0
    cell = fold[:, None] * len(values) + code
    num, hits = (
        np.bincount(cell[rows], minlength=FOLDS * len(values)).reshape(FOLDS, -1)
        for rows in (is_value, is_value & label[:, None])
    )
    base = np.bincount(fold, label, FOLDS), np.bincount(fold, minlength=FOLDS)
    # [FOLDS], the label's base rate in the other folds.
    rest = (label.sum() - base[0]) / np.maximum(len(label) - base[1], 1)
    num, hits = num.sum(axis=0) - num, hits.sum(axis=0) - hits
    # [FOLDS, values], each value's rate in the other folds, above the base rate.
    rate = (hits + PRIOR_ROWS * rest[:, None]) / (num + PRIOR_ROWS) - rest[:, None]
    of_row = np.where(is_value, rate[fold[:, None], code], 0.0)
    return np.asarray(of_row.sum(axis=1) / np.maximum(is_value.sum(axis=1), 1), np.float64)
