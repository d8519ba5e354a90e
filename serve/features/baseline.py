"""Baseline of a surface: a rule that orders candidates by their features, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serve.contract.typed_reader import STRICT
from serve.features.outcomes import Weight
from serve.features.slots import F32, F64

NO_RULE = "the surface has no [baseline]; add one to its TOML, or name another scorer, such as popular"


@dataclass(frozen=True)
class Baseline:
    """Rule over numeric features before their transform; it has either `sort` or `weights`.

    Attributes:
        sort: Features, the most important one first. Higher values come first, missing ones last.
        weights: Weight of each feature in a sum. Higher sums come first; a missing value is 0.
    """

    __pydantic_config__ = STRICT
    sort: tuple[str, ...] = ()
    weights: Mapping[str, Weight] = field(default_factory=dict)

    def worth(self, names: Sequence[str], numeric: F32) -> F64:
        """Return the worth `[N]` of rows from their features `[N, F]`; higher is better.

        `names` `[F]` are the names of the columns. With `sort`, the worth is the rank among these
        rows. Rows with equal features get equal worth, and the worth of rows of different calls
        cannot be compared.
        """
        columns = [numeric[:, names.index(name)] for name in self.sort or self.weights]
        if self.weights:
            # Add column by column: a matrix product would round equal rows differently.
            weighted = zip(self.weights.values(), columns, strict=True)
            return np.asarray(sum(w * np.nan_to_num(column.astype(np.float64)) for w, column in weighted))
        keys = np.stack([np.where(np.isnan(column), np.float32(-np.inf), column) for column in columns])
        # `lexsort` sorts by its last key first.
        order = np.lexsort(keys[::-1])
        is_higher = (keys[:, order[1:]] != keys[:, order[:-1]]).any(axis=0)
        worth = np.zeros(len(numeric))
        worth[order[1:]] = np.cumsum(is_higher)
        return worth
