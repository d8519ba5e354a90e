"""Amounts of an outcome: 1 for an event, the minutes of a stay, or the value of an event.

Training and the report of an experiment both count with the function `amounts`, so that they mean
the same. In shapes, E is the number of events, in the order in which they took place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from serve.contract.validation import UNITS_MS
from serve.features.outcomes import Outcome

Column = NDArray[Any]
Flags = NDArray[np.bool_]


def amounts(
    outcome: Outcome,
    kind: NDArray[Any] | pd.Series[Any],
    ts_ms: ArrayLike,
    viewer: ArrayLike,
    candidate: ArrayLike,
    value: ArrayLike,
) -> NDArray[np.float64]:
    """Return `[E]` the amount of each event that begins the outcome, and 0 for all other events.

    An amount is in the outcome's unit and lies between 0 and its cap. A stay lasts until the next
    `until` event of the same viewer and candidate, for example from a join to a leave.

    The amount is NaN where nobody can know it. That is so for a stay that begins again before it
    has ended, for a stay that never ends, and for a sum whose event has no value. For example, the
    events join, join, leave of one viewer at one room hold two stays; the first has the amount NaN.

    `viewer` and `candidate` are codes of any integer type. Each event of an unknown viewer needs a
    code of its own. Otherwise, the stay of one unknown viewer would end with the leave of another.
    """
    begins = np.asarray(kind == outcome.event)
    found = np.zeros(len(begins))
    if outcome.until is not None:
        ends = np.asarray(kind == outcome.until)
        found[begins] = _minutes(begins, ends, *map(np.asarray, (ts_ms, viewer, candidate)))
    elif outcome.sum is not None:
        found[begins] = np.asarray(value, np.float64)[begins]
    else:
        found[begins] = 1.0
    return np.clip(found, 0.0, outcome.scale)


def _minutes(begins: Flags, ends: Flags, ts_ms: Column, viewer: Column, candidate: Column) -> Column:
    """Return the minutes of each stay, in the order of their beginnings; NaN if it has no end."""
    columns = {"ms": ts_ms, "end_ms": np.where(ends, ts_ms, np.nan), "viewer": viewer, "candidate": candidate}
    # The sort is stable: of two events in the same millisecond, the first one stays first.
    events = pd.DataFrame(columns)[begins | ends].sort_values("ms", kind="stable")
    # A stay ends with the next event of the same viewer and candidate, if that event is an end.
    end_ms = events.groupby(["viewer", "candidate"])["end_ms"].shift(-1)
    lasted_ms = (end_ms - events["ms"])[np.flatnonzero(begins)]
    return lasted_ms.to_numpy() / UNITS_MS["m"]
