"""Where a rule applies: which candidates of one request meet its conditions.

Shapes: C candidates of the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.config.slate import Wanted
from serve.contract.hashing import hash64
from serve.features.matrix import Columns, Matrix
from serve.features.slots import I64, Bools, PackedRows

# Returns the values of a field or a feature: numbers, NaN if missing, or hashes of words, 0 if
# missing. Their shape is `[C]`, `[1]` for a value that all candidates share, or `[C, M]` for a set.
Facts = Callable[[str], NDArray[Any]]


def meeting(where: Mapping[str, Wanted], facts: Facts, num: int) -> Bools:
    """Return which of `num` candidates `[C]` meet all conditions; a missing value meets none."""
    # With so few candidates, a call of NumPy costs more than its work, so save calls.
    met: Bools | None = None
    for name, wanted in where.items():
        values = facts(name)
        if wanted.words:
            hit = values == hash64(wanted.words[0])
            for word in wanted.words[1:]:
                hit |= values == hash64(word)
        else:
            hit = values >= wanted.low
            if wanted.high < np.inf:
                hit &= values <= wanted.high
        hit = hit.any(axis=1) if hit.ndim == 2 else hit
        met = hit if met is None else met & hit
    assert met is not None, "rules without a condition are refused"
    # All candidates may share one value.
    return met if len(met) == num else np.repeat(met, num)


def facts_of(
    owners: Mapping[str, PackedRows], columns: Columns, matrix: Matrix | None, at: I64 | None = None
) -> Facts:
    """Return the facts of one request.

    Args:
        owners: The rows of the candidates `[C]`, of the viewer `[1]` and of the context `[1]`.
        columns: The names of the matrix's columns.
        matrix: The features of the candidates, if they were computed.
        at: Which candidates the matrix has; None if it has all.
    """

    def facts(name: str) -> NDArray[Any]:
        owner, dot, field = name.partition(".")
        if dot:
            return owners[owner][field]
        assert matrix is not None, "only boosts name features, and they need scores"
        # Candidates that the matrix lacks get `missing`.
        values: NDArray[Any]
        if name in columns.numeric:
            values, missing = matrix.numeric[:, columns.numeric.index(name)], np.nan
        else:
            values, missing = matrix.category[:, dict(columns.category_parts())[name]], 0
        if at is None:
            return values
        everywhere = np.full((len(owners["candidate"]), *values.shape[1:]), missing, values.dtype)
        everywhere[at] = values
        return everywhere

    return facts
