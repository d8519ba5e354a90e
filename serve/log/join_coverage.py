"""Join coverage of a log: the share of its references that name a row, and its duplicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.messages import quoted
from serve.features.slots import I64

# Limit the memory for shown candidates: a million at once where an exposure has 55.
EXPOSURES_AT_ONCE = 16_384
OWNERS = ("request_id", "viewer")
NEVER_MS = np.iinfo(np.int64).max
EVENT = ("viewer", "candidate", "kind", "ts_ms")
SAME_IDS = "write the same ids in both tables"
# Of each join: its words, and the remedy if nothing joins.
JOINS = {
    "viewers": ("exposures with a viewer find it in viewers", SAME_IDS),
    "candidates": ("shown candidates are in candidates", SAME_IDS),
    "events": (
        "events join an exposure",
        "an event needs its exposure's request_id, or a viewer and candidate of an earlier exposure",
    ),
}


@dataclass(frozen=True)
class Join:
    """`found` of `given` references name a row; `missing` describes the first that does not.

    `known` describes a row that could be named. Both are empty if there is none.
    """

    found: int
    given: int
    missing: str
    known: str


@dataclass(frozen=True)
class JoinCoverage:
    """Joins of a log: of exposures' viewers, shown candidates and events, as JOINS describes them.

    An event joins as in training: by its `request_id` and candidate, or else by its viewer and a
    candidate that an earlier exposure showed to that viewer. An event with neither does not count.
    """

    viewers: Join
    candidates: Join
    events: Join


def join_coverage(tables: Mapping[str, pa.Table]) -> JoinCoverage:
    """Return the joins of a log's four tables."""
    exposures, events = tables["exposures"], tables["events"]
    if "request_id" not in events.column_names:
        events = events.append_column("request_id", pa.nulls(len(events), pa.string()))
    events = events.filter(pc.or_(pc.is_valid(events["request_id"]), pc.is_valid(events["viewer"])))
    viewers = exposures.select(["viewer"]).filter(pc.is_valid(exposures["viewer"]))
    shown = pa.table({"candidate": pc.list_flatten(exposures["candidates"])})
    given, known = events.select([*OWNERS, "candidate"]), exposures.select([*OWNERS, "candidates"])
    return JoinCoverage(
        _named(viewers, tables["viewers"]),
        _named(shown, tables["candidates"]),
        _join(pa.array(_joined(exposures, events)), given, known),
    )


def _named(given: pa.Table, known: pa.Table) -> Join:
    is_found = pc.is_in(given[0].cast(pa.string()), known["id"].cast(pa.string()))
    return _join(is_found, given, known.select(["id"]))


def _join(is_found: Any, given: pa.Table, known: pa.Table) -> Join:
    at = pc.index(is_found, False).as_py()
    missing = _first(given.slice(at)) if at >= 0 else ""
    return Join(pc.sum(is_found).as_py() or 0, len(given), missing, _first(known))


def _first(table: pa.Table) -> str:
    """Return the ids in a table's first row, or ""."""
    (row,) = table.slice(0, 1).to_pylist() or [{}]
    return ", ".join(f"{name} {quoted(str(value))}" for name, value in row.items() if value is not None)


def check_joins(
    log: Path,
    tables: Mapping[str, pa.Table],
    fields: Mapping[Any, Any],
    report: Callable[[str], None],
) -> JoinCoverage:
    """Return the joins of a log's tables; report them in one line and duplicates in another.

    `fields` are those that a surface reads: a viewer or candidate without fields needs no row.

    Raises:
        TabrankError: nothing joins; with ids of both sides.
    """
    joins, shares = join_coverage(tables), []
    for name, join in vars(joins).items():
        what, remedy = JOINS[name]
        if join.given and join.known and not join.found and fields.get(name.removesuffix("s"), True):
            raise TabrankError(
                f"{log}: none of {join.given:,} {what}: {join.missing} on one side, {join.known} on the other; {remedy}"
            )
        shares.append(f"{join.found / max(1, join.given):.1%} of {join.given:,} {what}")
    report(f"{log}: {', '.join(shares)}")
    if repeated := duplicates(tables):
        report(f"{log}: {repeated}")
    return joins


def duplicates(tables: Mapping[str, pa.Table]) -> str:
    """Return in one line what a log's tables hold twice, "" if nothing."""
    events = tables["events"]
    known = events.filter(pc.is_valid(events["viewer"]))
    rows = (tables["viewers"], tables["candidates"])
    counts = {
        "exposures repeat a request_id (dropped)": _repeats(tables["exposures"], "request_id"),
        "events repeat an id (dropped)": _repeats(events, "id"),
        "events repeat viewer, candidate, kind and time (kept)": _repeats(known, *EVENT)
        - _repeats(known, *EVENT, "id"),
        "rows of viewers and candidates repeat an id and time (the last one holds)": sum(
            _repeats(table, "id", "ts_ms", "seq") for table in rows
        ),
    }
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def _repeats(table: pa.Table, *columns: str) -> int:
    key = table.select([name for name in columns if name in table.column_names])
    return len(table) - len(key.group_by(key.column_names).aggregate([]))


def _joined(exposures: pa.Table, events: pa.Table) -> NDArray[np.bool_]:
    """Return for each event whether it joins an exposure."""
    has_request = pc.is_valid(events["request_id"]).to_numpy()
    # An event counts no earlier than the exposure that it names.
    until_ms = np.where(has_request, NEVER_MS - 1, events["ts_ms"].to_numpy())
    shown_ms = np.where(has_request, *(_first_shown_ms(exposures, events, o) for o in OWNERS))
    return np.asarray(shown_ms <= until_ms)


def _first_shown_ms(exposures: pa.Table, events: pa.Table, owner: str) -> I64:
    """Return when each event's candidate was first shown to its `owner`, or NEVER_MS."""
    owners, candidates = (pc.unique(events[name].drop_null()) for name in (owner, "candidate"))
    pairs, pair = np.unique(
        _codes(events[owner], owners) * len(candidates) + _codes(events["candidate"], candidates),
        return_inverse=True,
    )
    first_ms = np.full(len(pairs), NEVER_MS)
    for begin in range(0, len(exposures) if len(pairs) else 0, EXPOSURES_AT_ONCE):
        part = exposures.slice(begin, EXPOSURES_AT_ONCE)
        lists = part["candidates"].combine_chunks()
        rows = pc.list_parent_indices(lists).to_numpy()
        owned, shown = _codes(part[owner], owners)[rows], _codes(pc.list_flatten(lists), candidates)
        keys = np.where((owned < 0) | (shown < 0), -1, owned * len(candidates) + shown)
        at = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        is_hit = (pairs[at] == keys) & (keys >= 0)
        np.minimum.at(first_ms, at[is_hit], part["ts_ms"].to_numpy()[rows[is_hit]])
    return np.asarray(first_ms[pair], np.int64)


def _codes(values: Any, known: Any) -> I64:
    """Return the place of each string among the known ones, or −1."""
    places = pc.index_in(values.cast(pa.string()), known.cast(pa.string()))
    return np.asarray(pc.fill_null(places, -1).to_numpy(), np.int64)
