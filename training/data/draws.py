"""Randomness of a served log: orders that were drawn, with their weights, and arms of viewers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.features.slots import F64, I64
from serve.log.reader import Log, read_table
from serve.ranking.exploration import log_weight, pick_probability

# Largest relative deviation of a logged propensity from the one that the log weights give.
TOLERANCE = 1e-3
# Columns of lists of numbers, and of what is told of an exposure; older segments lack some.
NUMBERS = ("scores", "propensity", "draw")
ABOUT = ("model", "experiment", "viewer", "rules", "pinned")
ARM_COLUMNS = ("request_id", "experiment", "arm", "share")


class Draw(NamedTuple):
    """Log entry of a drawn exposure, in the order shown.

    `weight` is the log weight of each candidate, −inf if it was not drawn, as pins are not. `rules`
    are those of its arm in words, which did not apply, and `num_pinned` counts the pins.
    """

    weight: F64
    propensity: F64
    model: str
    is_outside: bool
    rules: tuple[str, ...] = ()
    num_pinned: int = 0

    @property
    def is_cut(self) -> bool | None:
        """Return whether the draw included candidates that were not logged.

        None if the propensities are not those of the weights: another release drew the order.
        """
        weight, propensity = self.weight, self.propensity
        is_drawn = np.isfinite(weight)
        if len(weight) == len(propensity):
            logged, ours = propensity[is_drawn], pick_probability(weight[is_drawn])
            if not is_drawn.any() or np.abs(logged / ours - 1.0).max() <= TOLERANCE:
                return False
            if logged[-1] < 1.0 and (logged <= ours * (1.0 + TOLERANCE)).all():
                # Even the last pick shown had alternatives; that of a whole draw has none.
                return True
        return None


def read_draws(folder: Path, log: Log) -> dict[int, Draw]:
    """Return the entries of drawn exposures by their row in the log; {} if no order was drawn."""
    _, table = read_table(folder, "exposures", ("request_id", *NUMBERS, *ABOUT))
    found: dict[int, Draw] = {}
    if not {"scores", "propensity"} <= set(table.column_names):
        return found
    table = table.filter(pc.is_valid(table["propensity"]))
    at = pc.index_in(table["request_id"].cast(pa.string()), log.exposures["request_id"].combine_chunks())
    rows = table.select([name for name in table.column_names if name in ABOUT]).to_pylist()
    for row, (place, told) in enumerate(zip(at.to_pylist(), rows, strict=True)):
        # Test traffic has no place, and repeated requests have one already.
        if place is not None and place not in found:
            propensity = _numbers(table["propensity"][row])
            has_weights = "draw" in table.column_names and table["draw"][row].is_valid
            weight = _numbers(table["draw"][row]) if has_weights else _of_scores(table["scores"][row])
            # Known viewers outside experiments include testers under an arm of the X-Arm header,
            # which the log does not mark. Anonymous viewers are outside too, and stay.
            is_outside = told.get("experiment", "") is None and told.get("viewer") is not None
            about = tuple(told.get("rules") or ()), len(told.get("pinned") or ())
            found[place] = Draw(weight, propensity, told.get("model") or "unknown", is_outside, *about)
    return found


def _numbers(values: pa.ListScalar) -> F64:
    return np.asarray(values.values, np.float64)


def _of_scores(scores: pa.ListScalar) -> F64:
    """Return the log weights where a release did not log them: its scores were probabilities."""
    weight = log_weight(_numbers(scores).astype(np.float32))
    return np.where(np.isnan(weight), -np.inf, weight)


def drawn_weights(folder: Path, log: Log) -> dict[int, F64]:
    """Return the log weights of each whole draw by its row in the log; −inf where not drawn."""
    draws = read_draws(folder, log)
    return {i: draw.weight for i, draw in draws.items() if draw.is_cut is False}


def served_arms(folder: Path, log: Log) -> I64 | None:
    """Return the arm of each exposure `[N]`, 0 for the largest; −1 outside of the experiment.

    A viewer keeps an arm while the shares of an experiment stay. So the arms are those of one time
    of constant shares: the one with most exposures beside its largest arm. None: there is no such
    time with two arms.
    """
    _, table = read_table(folder, "exposures", ARM_COLUMNS)
    if not set(ARM_COLUMNS) <= set(table.column_names):
        return None
    table = table.filter(pc.and_(pc.is_valid(table["arm"]), pc.is_valid(table["experiment"])))
    # The row of each exposure: the first one of a repeated request, null outside of experiments.
    place = pc.index_in(log.exposures["request_id"], table["request_id"].cast(pa.string()).combine_chunks())
    rows = table.select(ARM_COLUMNS[1:]).take(place).to_pandas(categories=["experiment", "arm"])
    rows = rows.assign(ms=log.exposures["ts_ms"]).dropna(subset="arm").sort_values("ms", kind="stable")
    # An arm's first exposure changes the shares too.
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
