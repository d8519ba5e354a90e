"""Find columns that may know the future, and that a person must say are known before a ranking.

Two signs tell. A column orders far better than all other features together, as the time that a
viewer stayed does. Or it agrees with what happened to its viewer or candidate by chance, as a mean
over the whole log does. In shapes, N is the number of rows, and G of viewers or candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from serve.features.surface import Surface
from training.data.dataset import Dataset, sample
from training.evaluation.leakage import FOLDS, MIN_EACH, fold_of, rates
from training.evaluation.rivals import LIGHTGBM
from training.evaluation.slates import F64, auc

# At most this many rows are used, in whole slates.
MOST_ROWS = 50_000
# A column is far better than the rest if its normal deviate of the AUC, squared, is this many times
# as large. This grows like the information in a score: 0.70 has three times that of 0.62.
FAR_BETTER = 2.0
# Two strong columns hide one another, so that this many of the strongest are set aside together.
MOST_TOGETHER = 3
# Numbers are cut into this many cells of equal size.
CELLS = 32
TREES = {"objective": "binary", "num_leaves": 15, "min_data_in_leaf": 50, "learning_rate": 0.1, "lambda_l2": 10.0}
NUM_TREES = 40
# Agreement with chance must exceed none by this many standard errors, which are of a jackknife over
# this many parts of at least this many viewers or candidates.
SURE, PARTS, ENOUGH_IDS = 4.0, 20, 60


@dataclass(frozen=True)
class Question:
    """A column, such as candidate.dwell, of which a person must say that it is known before."""

    column: str
    why: str

    def __str__(self) -> str:
        owner, name = self.column.split(".")
        return (
            f"{self.column} {self.why}: is it known before a list is shown? If it is, write known_before = true at "
            f"{name} under [{owner}] of the surface; if not, remove it, or give its rows a ts_ms"
        )


def questions(data: Dataset, surface: Surface) -> list[Question]:
    """Return the columns to ask about, without those that the surface says are known before."""
    rows = sample(data, MOST_ROWS)
    label = rows.label > 0
    if min(label.sum(), (~label).sum()) < MIN_EACH:
        return []
    features = _features(rows, fold_of(rows.slate))
    declared = {path for path, of in surface.paths.items() if of.known_before}
    known = {name for path in declared for name in surface.read_by(path)}
    columns = {
        path: names
        for path in surface.paths.keys() - declared
        if (names := [name for name in surface.read_by(path) if name in features])
    }
    others = {name: score for name, score in features.items() if name not in known}
    found = {q.column: q for q in _informed_of_chance(rows, surface, columns)}
    return [*({q.column: q for q in _far_better(rows, columns, others)} | found).values()]
