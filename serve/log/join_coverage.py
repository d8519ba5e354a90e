"""Join coverage of a log: which share of its references name a row, and what it holds twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.messages import quoted
from serve.features.rows import NEVER_MS
from serve.features.slots import I64

# Limits the memory for shown candidates: 3.6 million at once if an exposure has 55.
EXPOSURES_AT_ONCE = 65_536
JOINS = {
    "viewers": "exposures with a viewer find it in viewers",
    "candidates": "shown candidates are in candidates",
    "events": "events join an exposure",
}
# Remedies if nothing joins.
SAME_IDS = "write the same ids in both tables"
SAME_EXPOSURE = (
    "an event needs its exposure's request_id and viewer, or a viewer and candidate of an earlier exposure"
)


# An import stops if a smaller share of the references names a row. Most often, ids are then written
# in two ways. A warning with examples follows from the second share on.
MIN_JOIN, TOLD_JOIN = 0.95, 0.99
# How many rows of each side are shown.
EXAMPLES = 3
# A join that was counted: which references name a row, the references, and the rows.
Counted = tuple[NDArray[np.bool_], pa.Table, pa.Table]


def join_coverage(tables: Mapping[str, pa.Table]) -> dict[str, Counted]:
    """Return the joins of a log's four tables, by their keys in JOINS.

    An event joins as in training: by its `request_id` and candidate, or else by its viewer and a
    candidate that an earlier exposure showed to that viewer. An event with neither does not count.
    An event that names another viewer than its exposure does joins nothing.
    """
    exposures, events = tables["exposures"], tables["events"]
    events = events.filter(pc.or_(pc.is_valid(events["request_id"]), pc.is_valid(events["viewer"])))
    has_request = pc.is_valid(events["request_id"]).to_numpy()
    is_found = np.zeros(len(events), bool)
    for owner, is_of in (("request_id", has_request), ("viewer", ~has_request)):
        is_found[is_of] = _joined(exposures, events.filter(pa.array(is_of)), owner)
    place = pc.index_in(events["request_id"].cast("string"), exposures["request_id"].cast("string"))
    is_same = pc.equal(events["viewer"].cast("string"), exposures["viewer"].cast("string").take(place))
    is_found &= pc.fill_null(is_same, True).to_numpy()
    shown = pa.table({"candidate": pc.list_flatten(exposures["candidates"])})
    owners = ["request_id", "viewer"]
    given, known = events.select([*owners, "candidate"]), exposures.select([*owners, "candidates"])
    return {
        "viewers": _named(exposures.select(["viewer"]).drop_null(), tables["viewers"]),
        "candidates": _named(shown, tables["candidates"]),
        "events": (is_found, given, known),
    }


def _named(given: pa.Table, known: pa.Table) -> Counted:
    is_found = pc.is_in(given[0].cast("string"), known["id"].cast("string"))
    return is_found.to_numpy(), given, known.select(["id"])


def _first(table: pa.Table) -> str:
    """Return the ids in a table's first rows."""
    return "; ".join(
        ", ".join(f"{name} {quoted(str(value))}" for name, value in row.items() if value is not None)
        for row in table.slice(0, EXAMPLES).to_pylist()
    )


def _doubt(is_found: NDArray[np.bool_], given: pa.Table, known: pa.Table) -> str:
    """Return examples of both sides of a join."""
    lone = given.filter(pa.array(~is_found))
    lone = lone.group_by(lone.column_names, use_threads=False).aggregate([])
    return f"{_first(lone)} on one side, {_first(known)} on the other"


def _joined(exposures: pa.Table, events: pa.Table, owner: str) -> Any:
    """Return for each event whether an exposure of its `owner` showed its candidate before."""
    owners, candidates = (pc.unique(events[name].cast("string")) for name in (owner, "candidate"))
    # The base is one more than the number of candidates, so that an unknown candidate, −1, does not
    # equal a pair of the owner before.
    base = len(candidates) + 1
    keys = places_in(events[owner], owners) * base + places_in(events["candidate"], candidates)
    pairs, pair = np.unique(keys, return_inverse=True)
    first_ms = np.full(len(pairs), NEVER_MS)
    exposures = exposures.append_column("owner", pa.array(places_in(exposures[owner], owners)))
    for begin in range(0, len(exposures) if len(pairs) else 0, EXPOSURES_AT_ONCE):
        part = exposures.slice(begin, EXPOSURES_AT_ONCE).filter(pc.field("owner") >= 0)
        lists = part["candidates"].combine_chunks()
        row = pc.list_parent_indices(lists).to_numpy()
        keys = part["owner"].to_numpy()[row] * base + places_in(pc.list_flatten(lists), candidates)
        at = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        is_hit = pairs[at] == keys
        np.minimum.at(first_ms, at[is_hit], part["ts_ms"].to_numpy()[row[is_hit]])
    # An event that names an exposure counts as coming after it, whatever its time is.
    until_ms = NEVER_MS - 1 if owner == "request_id" else events["ts_ms"].to_numpy()
    return first_ms[pair] <= until_ms


def places_in(values: Any, known: Any) -> I64:
    """Return the place of each string among the known ones; −1 for an unknown string."""
    return np.asarray(pc.fill_null(pc.index_in(values.cast("string"), known), -1).to_numpy(), np.int64)


def check_joins(
    log: Path | str,
    tables: Mapping[str, pa.Table],
    fields: Mapping[Any, Any],
    report: Callable[[str], None],
    *,
    is_trained_on: bool = True,
) -> dict[str, float]:
    """Report the joins of a log's tables in one line, and duplicates and lone events in another.

    A warning with examples follows for each join whose share is below TOLD_JOIN.

    `fields` are those that a surface reads. A viewer or candidate without fields needs no row, so
    its join does not matter. If exposures stand for others that were not kept, an event cannot
    always join; the share of events is then one of those that could.

    Returns:
        The share of each join that matters and has references.

    Raises:
        TabrankError: nothing joins; the message shows ids of both sides. Or no event can join, and
            the log `is_trained_on`.
    """
    coverage, shares = {}, []
    joins, num_events = join_coverage(tables), len(tables["events"])
    num_unowned = num_events - len(joins["events"][1])
    if is_trained_on and num_events and num_unowned == num_events:
        raise TabrankError(
            f"{log}: none of {num_events:,} events has a request_id or a viewer; {SAME_EXPOSURE}"
        )
    exposures = tables["exposures"]
    # How many exposures each one stands for. A log that is being imported has no such column.
    one_in = exposures["one_in"].to_numpy() if "one_in" in exposures.column_names else np.ones(1)
    times = float(one_in.mean()) if len(one_in) else 1.0
    doubts = []
    for name, (is_found, given, known) in joins.items():
        found = int(is_found.sum())
        could_join = len(given) / (times if name == "events" else 1.0)
        share, what = min(1.0, found / max(1.0, could_join)), f"{len(given):,} {JOINS[name]}"
        remedy = SAME_EXPOSURE if name == "events" else SAME_IDS
        shares.append(f"{share:.1%} of {what}")
        if len(given) and fields.get(name.removesuffix("s"), True):
            coverage[name] = share
            if len(known) and share < TOLD_JOIN:
                doubt = f"{what}: {_doubt(is_found, given, known)}; {remedy}"
                if not found:
                    raise TabrankError(f"{log}: none of {doubt}")
                doubts.append(f"{log}: warning: only {share:.1%} of {doubt}")
    if times > 1.0:
        shares.append(f"{len(exposures):,} exposures were kept of about {one_in.sum():,}, and are weighed")
    for counts in (shares, _oddities(tables, num_unowned)):
        if line := ", ".join(counts):
            report(f"{log}: {line}")
    for doubt in doubts:
        report(doubt)
    return coverage


def _oddities(tables: Mapping[str, pa.Table], num_unowned: int) -> Iterator[str]:
    """Return a line for each kind of repeated rows and of lone events, with their number."""
    events, event = tables["events"], ("viewer", "candidate", "kind", "ts_ms")
    known = events.filter(pc.is_valid(events["viewer"]))
    counts = {
        "events have neither request_id nor viewer": num_unowned,
        "exposures repeat a request_id (dropped)": _repeats(tables["exposures"], "request_id"),
        "events repeat an id (dropped)": _repeats(events, "id"),
        "events repeat viewer, candidate, kind and time (kept)": _repeats(known, *event)
        - _repeats(known, *event, "id"),
        "rows of viewers and candidates repeat an id and time (the last one holds)": sum(
            _repeats(tables[name], "id", "ts_ms", "seq") for name in ("viewers", "candidates")
        ),
    }
    return (f"{number:,} {what}" for what, number in counts.items() if number)


def _repeats(table: pa.Table, *columns: str) -> int:
    key = table.select([name for name in columns if name in table.column_names])
    return len(table) - len(key.group_by(key.column_names).aggregate([]))
