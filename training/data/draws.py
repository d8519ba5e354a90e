"""What was random in a served log: the orders that were drawn, and the arms of viewers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.features.slots import F64, I64
from serve.log.reader import Log, read_table

COLUMNS = ("request_id", "propensity", "draw", "model", "experiment", "viewer", "rules", "pinned")
ARM_COLUMNS = ("request_id", "experiment", "arm", "share")


class Draw(NamedTuple):
    """Log entry of an exposure whose order was drawn at random, in the order shown.

    `weight` is the log weight of each candidate. It is −inf for a candidate that was not drawn,
    such as a pinned one. `is_cut` says whether candidates that were drawn further down were not
    logged. `rules` describes the slate rules of its arm, which do not apply to drawn orders.
    `num_pinned` is the number of pinned candidates.
    """

    weight: F64
    is_cut: bool
    model: str
    is_outside: bool
    rules: tuple[str, ...] = ()
    num_pinned: int = 0


def read_draws(folder: Path, log: Log) -> dict[int, Draw]:
    """Return the drawn exposures' entries by their row in the log; empty if no order was drawn."""
    _, table = read_table(folder, "exposures", COLUMNS)
    if "propensity" not in table.column_names:
        return {}
    table = table.filter(pc.is_valid(table["propensity"]))
    at = pc.index_in(table["request_id"].cast(pa.string()), log.exposures["request_id"].combine_chunks())
    found: dict[int, Draw] = {}
    for place, row in zip(at.to_pylist(), table.to_pylist(), strict=True):
        # The log leaves out test traffic, and it keeps only the first of repeated requests.
        if place is not None and place not in found:
            weight = np.array(row["draw"], np.float64)
            chances = np.array(row["propensity"], np.float64)[np.isfinite(weight)]
            # The last pick of a whole draw has no alternative.
            is_cut = bool((chances[-1:] < 1.0).any())
            # A known viewer outside of the experiment may be a tester who chose an arm with the
            # header X-Arm, which the log does not mark, so leave these out. Anonymous viewers are
            # always outside of experiments, so keep them.
            is_outside = row["experiment"] is None and row["viewer"] is not None
            about = tuple(row["rules"] or ()), len(row["pinned"] or ())
            found[place] = Draw(weight, is_cut, row["model"] or "unknown", is_outside, *about)
    return found


def drawn_weights(folder: Path, log: Log) -> dict[int, F64]:
    """Return the log weights of each complete draw by its row in the log; −inf if not drawn."""
    draws = read_draws(folder, log)
    return {i: draw.weight for i, draw in draws.items() if not draw.is_cut}


def served_arms(folder: Path, log: Log) -> I64 | None:
    """Return the arm of each exposure `[N]`: 0 is the largest, −1 is outside of the experiment.

    A viewer keeps an arm only while the shares of an experiment stay the same. So the function
    takes the arms of one period of constant shares: the period with the most exposures outside of
    its largest arm. Returns None if no such period has two arms.
    """
    _, table = read_table(folder, "exposures", ARM_COLUMNS)
    if not set(ARM_COLUMNS) <= set(table.column_names):
        return None
    table = table.filter(pc.and_(pc.is_valid(table["arm"]), pc.is_valid(table["experiment"])))
    # For each exposure of the log its row in the table: the first row of a repeated request, and
    # null outside of experiments.
    place = pc.index_in(log.exposures["request_id"], table["request_id"].cast(pa.string()).combine_chunks())
    rows = table.select(ARM_COLUMNS[1:]).take(place).to_pandas(categories=["experiment", "arm"])
    rows = rows.assign(ms=log.exposures["ts_ms"]).dropna(subset="arm").sort_values("ms", kind="stable")
    # A period begins when an arm's share changes, and with an arm's first exposure.
    rows["time"] = rows["share"] != rows.groupby(["experiment", "arm"], observed=True)["share"].shift()
    rows["time"] = rows.groupby("experiment", observed=True)["time"].cumsum()
    sizes = rows.groupby(["experiment", "time", "arm"], observed=True).size()
    beside = sizes.groupby(level=[0, 1], observed=True).agg(lambda num: num.sum() - num.max())
    if not (beside > 0).any():
        return None
    experiment, time = beside.idxmax()
    largest_first = sizes.loc[experiment, time].sort_values(ascending=False).index
    rows = rows[(rows["experiment"] == experiment) & (rows["time"] == time)]
    found = np.full(len(log.exposures), -1)
    found[rows.index] = largest_first.get_indexer(rows["arm"])
    return found
