"""Replay: a log's records applied to the state in their order, as the service would have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.kinds import IMPRESSION, Entity
from serve.log import Log
from serve.state import I64, Schema, State

EVER_MS = np.iinfo(np.int64).min  # the time of a row that has held since ever
UPSERT, EXPOSURE, EVENT = 0, 1, 2


class Codes:
    """Ids as numbers from 1, in order of first appearance; 0 is null."""

    def __init__(self, *columns: pa.ChunkedArray) -> None:
        arrays = [_flat(column) for column in columns]
        encoded = (
            pa.chunked_array([a for a in arrays if len(a)], pa.string()).combine_chunks().dictionary_encode()
        )
        self.ids: list[str] = encoded.dictionary.to_pylist()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        self.columns: list[I64] = np.split(codes, np.cumsum([len(a) for a in arrays])[:-1])


def _flat(column: pa.ChunkedArray) -> pa.Array:
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat


def event_times(exposures: pa.Table, events: pa.Table) -> I64:
    """When each event happened `[E]`: one that names its exposure did not come before it, whatever the client's
    clock said."""
    number = pc.index_in(
        events["request_id"].cast(pa.string()), _flat(exposures["request_id"].cast(pa.string()))
    )
    exposure = pc.fill_null(number, -1).to_numpy().astype(np.int64)
    exposure_ms = exposures["ts_ms"].to_numpy().astype(np.int64)
    event_ms: I64 = events["ts_ms"].to_numpy().astype(np.int64)
    return np.maximum(event_ms, np.where(exposure < 0, EVER_MS, exposure_ms[exposure]))


class Replay:
    """A state, and a cursor in the log: `advance(t)` applies every record from before `t`.

    Row numbers of viewers and candidates are fixed from the start (`exposure_viewer`, `shown`), but an id is
    known only once its first record was applied: until then `candidate_rows` answers row 0, nobody.
    `event_ms` are the events' times as `event_times` says.
    """

    def __init__(self, schema: Schema, log: Log) -> None:
        self.state = State(schema)
        self._log = log
        viewers = Codes(log.viewers["id"], log.exposures["viewer"], log.events["viewer"])
        candidates = Codes(
            log.candidates["id"], pc.list_flatten(log.exposures["candidates"]), log.events["candidate"]
        )
        for name in viewers.ids:
            self.state.viewers.add(name)
        for name in candidates.ids:
            self.state.candidates.add(name)
        _, self.exposure_viewer, self.event_viewer = viewers.columns
        _, self.shown, self.event_candidate = candidates.columns
        self.known: dict[Entity, NDArray[np.bool_]] = {
            "viewer": np.zeros(len(viewers.ids) + 1, bool),
            "candidate": np.zeros(len(candidates.ids) + 1, bool),
        }
        lengths = pc.list_value_length(log.exposures["candidates"]).to_numpy()
        self.first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # of exposure i in `shown`
        self.exposure_ms = log.exposures["ts_ms"].to_numpy()
        self.event_ms = event_times(log.exposures, log.events)
        kinds = _flat(log.events["kind"]).dictionary_encode()
        names = np.array(kinds.dictionary.to_pylist(), dtype=object)  # one string a kind, not one an event
        self.event_kind = names[kinds.indices.to_numpy()]
        self._upserts = self._read_upserts("viewer", log.viewers) + self._read_upserts(
            "candidate", log.candidates
        )
        self._order()

    def _read_upserts(
        self, entity: Entity, table: pa.Table
    ) -> list[tuple[int, Entity, str, int | None, dict[str, Any]]]:
        names = self.state.schema.surface.fields[entity]
        columns = {name: table[name].to_pylist() for name in names}
        rows = zip(*columns.values(), strict=True) if columns else iter([()] * len(table))
        times = [EVER_MS if t is None else t for t in table["ts_ms"].to_pylist()]
        ends = table["ends_ms"].to_pylist() if entity == "candidate" else [None] * len(table)
        return [
            (t, entity, name, end, dict(zip(names, row, strict=True)))
            for t, name, end, row in zip(times, table["id"].to_pylist(), ends, rows, strict=True)
        ]

    def _order(self) -> None:
        upsert_ms = np.array([upsert[0] for upsert in self._upserts], np.int64)
        times = (upsert_ms, self.exposure_ms, self.event_ms)
        ts = np.concatenate(times)
        which = np.repeat([UPSERT, EXPOSURE, EVENT], [len(t) for t in times])
        index = np.concatenate([np.arange(len(t)) for t in times])
        order = np.lexsort((index, which, ts))
        self._ts, self._which, self._index = ts[order], which[order], index[order]
        self._at = 0

    def advance(self, before_ms: int) -> None:
        """Apply the records of times strictly before `before_ms`; ties stay unseen."""
        end = int(np.searchsorted(self._ts, before_ms, "left"))
        while self._at < end:
            which = self._which[self._at : end]
            upserts = np.flatnonzero(which == UPSERT)
            num = int(upserts[0]) if len(upserts) else len(which)
            if num == 0:
                self._upsert(int(self._index[self._at]))
                self._at += 1
            else:
                self._observe(slice(self._at, self._at + num))
                self._at += num

    def finish(self) -> None:
        """Apply all that is left."""
        self.advance(np.iinfo(np.int64).max)

    def candidate_rows(self, shown: I64) -> I64:
        """The row numbers, as known now, of positions in `shown`."""
        return self._known_rows(self.shown[shown])

    def _known_rows(self, candidates: I64) -> I64:
        return np.where(self.known["candidate"][candidates], candidates, 0)

    def _upsert(self, number: int) -> None:
        _, entity, name, ends_ms, fields = self._upserts[number]
        self.state.upsert(entity, name, fields, ends_ms)
        rows = self.state.viewers if entity == "viewer" else self.state.candidates
        self.known[entity][rows.index[name]] = True

    def _observe(self, run: slice) -> None:
        """Apply a run of exposures and events: sums all at once, maps record by record."""
        which, index, ts = self._which[run], self._index[run], self._ts[run]
        exposures, events = index[which == EXPOSURE], index[which == EVENT]
        impressions = not self.state.schema.surface.impression_events
        if impressions and len(exposures):
            parts = [slice(self.first[i], self.first[i + 1]) for i in exposures]
            shown = self._known_rows(np.concatenate([self.shown[part] for part in parts]))
            lengths = [part.stop - part.start for part in parts]
            viewers = np.repeat(self.exposure_viewer[exposures], lengths)
            self.state.observe(IMPRESSION, viewers, shown, np.repeat(self.exposure_ms[exposures], lengths))
            self.known["viewer"][self.exposure_viewer[exposures]] = True
        if len(events):
            kinds = self.event_kind[events]
            for kind in dict.fromkeys(kinds):
                at = events[kinds == kind]
                candidates = self._known_rows(self.event_candidate[at])
                self.state.observe(kind, self.event_viewer[at], candidates, self.event_ms[at])
            self.known["viewer"][self.event_viewer[events]] = True
        for what, i, t in zip(which, index, ts, strict=True):
            if what == EVENT:
                candidate = self._known_rows(self.event_candidate[i : i + 1])
                self.state.observe_maps(self.event_kind[i], int(self.event_viewer[i]), candidate, int(t))
            elif impressions:
                slate = self._known_rows(self.shown[self.first[i] : self.first[i + 1]])
                self.state.observe_maps(IMPRESSION, int(self.exposure_viewer[i]), slate, int(t))
