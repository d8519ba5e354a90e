"""Record simulated visits, and convert them to the tables of a log and of the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.features.slots import I64
from training.world.population import DEVICES, LANGUAGES, PLACES, TOPICS
from training.world.world import Response, World

KINDS = ("click", "join", "leave", "hide")


@dataclass
class VisitLog:
    """Exposures and responses in the order of the visits."""

    shown: list[I64] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)

    def add(self, shown: I64, response: Response) -> None:
        """Add one exposure, given by its Spaces in the shown order, and the response to it."""
        self.shown.append(shown)
        self.responses.append(response)

    def flat(self, name: str) -> Any:
        """Return one field of the responses for all rows of all exposures, end to end."""
        return np.concatenate([getattr(response, name) for response in self.responses])

    @property
    def offsets(self) -> pa.Array:
        """The index of each exposure's first row, int32 [exposures + 1]."""
        return pa.array(np.cumsum([0, *map(len, self.shown)]), pa.int32())

    def truth(self, world: World) -> dict[str, pa.Array]:
        """Return the truth about each exposure, as lists aligned with its candidates."""
        left_ms = world.spaces.ends_ms[np.concatenate(self.shown)] - self.flat("join_ms")
        truth = {name: self.flat(name) for name in ("p_click", "p_join", "p_hide", "examination")}
        truth["minutes"] = world.minutes(self.flat("log_minutes"), left_ms)
        return {name: pa.ListArray.from_arrays(self.offsets, pa.array(each)) for name, each in truth.items()}


def log_tables(world: World, ts_ms: I64, viewer: I64, record: VisitLog) -> dict[str, pa.Table]:
    """Return the tables of a log and its truth, for visits at `ts_ms` by `viewer`.

    Each visit is an exposure.
    """
    viewer_ids = _ids("v", len(world.viewers))
    space_ids = _ids("s", len(world.spaces))
    exposures = {
        "request_id": _ids("r", len(ts_ms)),
        "ts_ms": pa.array(ts_ms),
        "viewer": viewer_ids.take(pa.array(viewer)),
        "candidates": pa.ListArray.from_arrays(record.offsets, space_ids.take(np.concatenate(record.shown))),
        "context": pa.StructArray.from_arrays([pa.array(world.hour(viewer, ts_ms))], names=["hour"]),
    }
    columns = {
        "viewers": _viewer_columns(world, viewer_ids),
        "candidates": _candidate_columns(world, space_ids),
        "exposures": exposures,
        "events": _event_columns(exposures, record, world.end_ms),
        "truth": {"request_id": exposures["request_id"], **record.truth(world)},
    }
    return {name: pa.table(table) for name, table in columns.items()}


def _viewer_columns(world: World, viewer_ids: pa.Array) -> dict[str, pa.Array]:
    viewers = world.viewers
    return {
        "id": viewer_ids,
        "ts_ms": pa.nulls(len(viewers), pa.int64()),
        "language": _names(LANGUAGES, viewers.language),
        "country": _names([place.country for place in PLACES], viewers.place),
        "device": _names(DEVICES, viewers.device),
        "follows": _lists(_ids("h", len(world.hosts.place)), viewers.follows),
        "friends": _lists(viewer_ids, viewers.friends),
    }


def _candidate_columns(world: World, space_ids: pa.Array) -> dict[str, pa.Array]:
    """Return candidate rows: at a Space's start, when more speakers join, and at its end.

    No row knows an end that lies in its future.
    """
    spaces, hosts = world.spaces, _ids("h", len(world.hosts.place))
    every = np.arange(len(spaces))
    grown = np.flatnonzero(spaces.grown_ms < np.minimum(spaces.ends_ms, world.end_ms))
    ended = np.flatnonzero(spaces.ends_ms < world.end_ms)
    space = np.concatenate([every, grown, ended])
    ts_ms = np.concatenate([spaces.started_ms, spaces.grown_ms[grown], spaces.ends_ms[ended]])
    is_end = np.arange(len(space)) >= len(every) + len(grown)
    speakers = np.where(ts_ms >= spaces.grown_ms[space], spaces.grown_speakers[space], spaces.speakers[space])
    order = np.argsort(ts_ms, kind="stable")
    space = space[order]
    return {
        "id": space_ids.take(pa.array(space)),
        "ts_ms": pa.array(ts_ms[order]),
        "ends_ms": pa.array(ts_ms[order], mask=~is_end[order]),
        "host": hosts.take(pa.array(spaces.host[space])),
        "topic": _names(TOPICS, spaces.topic[space]),
        "language": _names(LANGUAGES, spaces.language[space]),
        "speakers": pa.array(speakers[order].astype(np.float64)),
        "started_ms": pa.array(spaces.started_ms[space]),
        "guests": _lists(hosts, spaces.guests[space]),
    }


def _event_columns(exposures: Mapping[str, pa.Array], record: VisitLog, end_ms: int) -> dict[str, pa.Array]:
    # For each kind of event: which rows have it, and when.
    kinds = (("clicked", "click_ms"), ("joined", "join_ms"), ("joined", "leave_ms"), ("hidden", "click_ms"))
    rows = [np.flatnonzero(record.flat(happened)) for happened, _ in kinds]
    kind = np.repeat(np.arange(len(KINDS)), [len(found) for found in rows])
    ts_ms = np.concatenate([record.flat(when)[found] for (_, when), found in zip(kinds, rows, strict=True)])
    row = np.concatenate(rows)
    order = np.argsort(ts_ms, kind="stable")
    # Drop events after the log's end: they have not happened yet.
    order = order[ts_ms[order] < end_ms]
    row = pa.array(row[order])
    shown = exposures["candidates"]
    exposure = pc.list_parent_indices(shown).take(row)
    return {
        "id": _ids("e", len(order)),
        "ts_ms": pa.array(ts_ms[order]),
        "viewer": exposures["viewer"].take(exposure),
        "candidate": shown.values.take(row),
        "kind": _names(KINDS, kind[order]),
        "request_id": exposures["request_id"].take(exposure),
    }


def _ids(prefix: str, num: int) -> pa.Array:
    return pa.array([f"{prefix}{i:07d}" for i in range(num)], pa.string())


def _lists(ids: pa.Array, index: I64) -> pa.Array:
    """Return for each row of an index the list of its ids; negative entries are left out."""
    offsets = pa.array(np.append(0, np.cumsum((index >= 0).sum(axis=1))), pa.int32())
    return pa.ListArray.from_arrays(offsets, ids.take(pa.array(index[index >= 0])))


def _names(names: Sequence[str], index: I64) -> pa.Array:
    return pa.array(list(names), pa.string()).take(pa.array(index))
