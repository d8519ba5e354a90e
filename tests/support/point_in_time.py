"""Compare the features of a log's rows, computed from the whole log and from its past alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.log.reader import Log
from training.data.dataset import Dataset, build


def point_in_time(schema: Schema, log: Log, at: float) -> dict[str, float]:
    """Return the largest difference of each feature between two computations of the same rows.

    The log is cut at the time by which a share `at` of its exposures came. The rows of all
    exposures up to that time are computed twice: from the whole log, and from a log without the
    records at or after that time, except for the exposures of that instant. In the whole log, each
    exposure of the instant also has a duplicate, which reveals a slate that sees itself.

    A difference is |x − y| / max(1, |x|). It is infinite if a category differs, or if only one of
    the values is missing. For correct features it is at most 1e-6, and not 0, because sums may be
    added in another order.

    Raises:
        TabrankError: if `at` is not between 0 and 1, or no row can be compared.
    """
    if not 0 <= at <= 1:
        raise TabrankError(f"at: {at:g} must lie between 0 and 1, a share of the exposures by time")
    times = np.sort(log.exposures["ts_ms"].to_numpy())
    cut_ms = int(times[min(int(len(times) * at), len(times) - 1)])
    end_ms = log.ends_ms + schema.surface.longest_window_ms + 1
    is_later = pc.greater(log.exposures["ts_ms"], cut_ms)
    later = log.exposures["request_id"].filter(is_later)
    # An event counts no earlier than the exposure that it names, even if its own time is earlier.
    is_past = pc.and_not(pc.less(log.events["ts_ms"], cut_ms), pc.is_in(log.events["request_id"], later))
    cut = replace(
        log,
        viewers=_held_before(log.viewers, cut_ms),
        candidates=_held_before(log.candidates, cut_ms),
        exposures=_closed(log.exposures.filter(pc.invert(is_later)), end_ms),
        events=log.events.filter(is_past),
    )
    duplicates = log.exposures.filter(pc.equal(log.exposures["ts_ms"], cut_ms))
    names = pa.array(
        [f"duplicate {i} of {request}" for i, request in enumerate(duplicates["request_id"].to_pylist())]
    )
    duplicates = duplicates.set_column(duplicates.column_names.index("request_id"), "request_id", names)
    whole = replace(log, exposures=_closed(pa.concat_tables([log.exposures, duplicates]), end_ms))
    given, expected = (build(schema, side) for side in (whole, cut))
    return _differences(given, expected)


def shown_ids(data: Dataset) -> list[str]:
    """Return the id of each row's candidate."""
    return [str(data.candidate_ids[i]) for i in data.shown]


def _held_before(table: pa.Table, cut_ms: int) -> pa.Table:
    return table.filter(pc.fill_null(pc.less(table["ts_ms"], cut_ms), True))


def _closed(exposures: pa.Table, end_ms: int) -> pa.Table:
    """Append a last exposure without a viewer, so that the rows' label windows have closed."""
    last = {"request_id": "the end", "ts_ms": end_ms, "candidates": ["nothing"], "one_in": 1}
    row = [{name: last.get(name) for name in exposures.column_names}]
    return pa.concat_tables([exposures, pa.Table.from_pylist(row, schema=exposures.schema)])


def _differences(given: Dataset, expected: Dataset) -> dict[str, float]:
    """Return the differences by feature, over the rows that both data sets have."""
    here, there = (
        {
            (data.request_ids[s], c): i
            for i, (s, c) in enumerate(zip(data.slate, shown_ids(data), strict=True))
        }
        for data in (given, expected)
    )
    pairs = [(here[key], i) for key, i in there.items() if key in here]
    if not pairs:
        raise TabrankError("no row of the log lies before the cut; cut it later")
    ours, theirs = np.array(pairs).T
    x, y = given.matrix.numeric[ours].astype(np.float64), expected.matrix.numeric[theirs].astype(np.float64)
    apart = np.abs(x - y) / np.maximum(1.0, np.abs(x))
    apart[np.isnan(x) & np.isnan(y)] = 0.0
    apart[np.isnan(apart)] = np.inf
    largest = dict(zip(given.columns.numeric, apart.max(axis=0).tolist(), strict=True))
    differs = (given.matrix.category[ours] != expected.matrix.category[theirs]).any(axis=0)
    at = 0
    for name, width in [*((name, 1) for name in given.columns.single), *given.columns.multi]:
        largest[name] = float("inf") if differs[at : at + width].any() else 0.0
        at += width
    return largest
