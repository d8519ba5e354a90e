"""Amounts of an outcome: 1 for an event, the minutes of a stay, or what an event's value says.

Training and the report of an experiment both count by this function. E events, in the order in
which they took place.
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
    """Return [E] the amount of each event that begins the outcome, in its unit, and 0 for others.

    An amount is between 0 and the cap. A stay lasts until the next `until` of the same viewer and
    candidate, for example from a join to a leave. NaN is an amount that nobody knows: of a stay
    which begins again before it has ended, or never ends, and of a sum without a value.

    `viewer` and `candidate` are codes of any integer type. Events of unknown viewers need codes of
    their own, or one's stay would end with another's.
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
    """Return the minutes of each stay, in order of its beginning, and NaN without an end."""
    columns = {"ms": ts_ms, "end_ms": np.where(ends, ts_ms, np.nan), "viewer": viewer, "candidate": candidate}
    # The sort is stable: of two events in the same millisecond, the first one stays first.
    events = pd.DataFrame(columns)[begins | ends].sort_values("ms", kind="stable")
    # The end is the next event of the same viewer and candidate, if that is one.
    end_ms = events.groupby(["viewer", "candidate"])["end_ms"].shift(-1)
    lasted_ms = (end_ms - events["ms"])[np.flatnonzero(begins)]
    return lasted_ms.to_numpy() / UNITS_MS["m"]
