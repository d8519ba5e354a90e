"""Replay: apply a log's records to the state in the order in which the service applied them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, groupby
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.field_values import plain
from serve.features.interactions import Interactions
from serve.features.rows import EVER_MS, NEVER_MS, Schema, State, encode
from serve.features.slots import ENTITIES, I64, IMPRESSION, Entity, PackedRows
from serve.features.surface import Field
from serve.log.join_coverage import places_in
from serve.log.reader import Log, filled
from serve.log.snapshots import Snapshot, start

UPSERT, EXPOSURE, EVENT = 0, 1, 2
_decoder = msgspec.json.Decoder(dict[str, dict[str, Any]])

# A record that changes the state. `place` is its row in its table. Exposures and events also have
# their viewer, their range in `Replay._candidates`, and how many records they stand for.
NAMES = ("seq", "ts_ms", "which", "place", "event", "viewer", "begin", "end", "weight")
RECORD = np.dtype([(name, np.int64) for name in NAMES])


class Codes:
    """Ids encoded as numbers from 1, in order of first appearance; 0 encodes null."""

    def __init__(self, *columns: pa.ChunkedArray) -> None:
        chunks = [chunk for column in columns for chunk in column.chunks if len(chunk)]
        encoded = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
        self.ids: list[str] = encoded.dictionary.to_pylist()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
        self.columns: list[I64] = np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def event_times(exposures: pa.Table, events: pa.Table) -> I64:
    """Return the time of each event `[E]`, moved to the exposure that it names if that is later.

    An event may seem to come before its exposure because a client's clock may be behind.
    """
    exposure = places_in(events["request_id"], exposures["request_id"].cast("string").combine_chunks())
    # An event that names no exposure of the log has the place −1, so the last time is before all
    # others.
    exposure_ms = np.append(exposures["ts_ms"].to_numpy(), EVER_MS)
    times_ms: I64 = np.maximum(events["ts_ms"].to_numpy(), exposure_ms[exposure])
    return times_ms


def decode_stated(
    text: str, where: str, declared: Mapping[str, Field] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the fields that an exposure's request stated, by candidate.

    If `declared` is given, other fields are left out, and values get the types of their fields.
    """
    try:
        stated = _decoder.decode(text)
        if declared is None:
            return stated
        return {
            candidate: {n: plain(declared, n, value, "") for n, value in fields.items() if n in declared}
            for candidate, fields in stated.items()
        }
    except (msgspec.MsgspecError, TabrankError) as error:
        why = f"{error}; it holds JSON: the fields by candidate"
        raise TabrankError(f"exposures: column 'stated', {where}: {why}") from None


class _Upsert(NamedTuple):
    """Row of `viewers` or `candidates`; `fields` is None if its id was removed."""

    ts_ms: int
    received_ms: int
    entity: Entity
    id: str
    ends_ms: int | None
    fields: Mapping[str, Any] | None


def _records(which: int, seq: I64, ts_ms: I64 | list[int]) -> NDArray[np.void]:
    """Return the records of one kind, in the order of their table."""
    records = np.zeros(len(seq), RECORD)
    records["which"], records["place"] = which, np.arange(len(seq))
    records["seq"], records["ts_ms"], records["weight"] = seq, ts_ms, 1
    return records


def apply(log: Log, state: State) -> None:
    """Apply a log's records to a state.

    A log can be replayed in parts with it (`serve.log.stream`). The result is that of the whole
    log, except for the rounding of sums.
    """
    replay = Replay(state.schema, log, state)
    replay.finish()
    replay.as_served()


class Replay:
    """State with a cursor in the log's records: `advance(t)` applies every record before `t`.

    Records without a number come first, ordered by time. Records that a service numbered follow,
    ordered by number. `sees` `[exposures]` is the number of records on which each exposure was
    ranked: those up to its logged `seen_seq`, or else those strictly before its time.

    If the first records were deleted, the state starts from a snapshot, and only later records are
    applied. Exposures that were ranked on an earlier state are marked in `before_snapshot`
    `[exposures]`; their features cannot be recomputed.

    Row numbers of viewers and candidates are fixed from the start (`exposure_viewer`, `shown`). An
    id is known once its first record was applied; until then it has row 0. `event_ms` are the times
    that `event_times` returns.

    If a `state` is given, the log's records are applied to it, and its ids are known from the
    start.
    """

    def __init__(self, schema: Schema, log: Log, state: State | None = None) -> None:
        self.state = state or State(schema)
        self._snapshot = None if state else start(log.snapshots, schema.fingerprint)
        held = [[self._snapshot.ids(entity)] if self._snapshot else [] for entity in ENTITIES]
        viewers = Codes(log.viewers["id"], log.exposures["viewer"], log.events["viewer"], *held[0])
        candidates = Codes(
            log.candidates["id"],
            pc.list_flatten(log.exposures["candidates"]),
            log.events["candidate"],
            *held[1],
        )
        self._ids: dict[Entity, list[str]] = {"viewer": viewers.ids, "candidate": candidates.ids}
        self.known: dict[Entity, NDArray[np.bool_]] = {}
        for rows, codes in ((self.state.viewers, viewers), (self.state.candidates, candidates)):
            is_new = np.fromiter((name not in rows.index for name in codes.ids), bool, len(codes.ids))
            row_of = np.fromiter((0, *map(rows.add, codes.ids)), np.int64, len(codes.ids) + 1)
            self.known[rows.entity] = np.ones(len(rows.ids), bool)
            self.known[rows.entity][row_of] = np.append(False, ~is_new)
            if state:
                # In a blank state, the number of a row is the code of its id.
                codes.columns = [row_of[column] for column in codes.columns]
        _, self.exposure_viewer, self.event_viewer, *_ = viewers.columns
        _, shown, event_candidate, *_ = candidates.columns
        self._candidates = np.concatenate([shown, event_candidate])
        # Views of `_candidates`.
        self.shown, self.event_candidate = np.split(self._candidates, [len(shown)])
        self.state.candidates.link(np.arange(len(self.state.candidates.ids)))
        if self._snapshot:
            self._restore(self._snapshot)
        lengths = pc.list_value_length(log.exposures["candidates"]).to_numpy()
        # Exposure i has the candidates `shown[first[i] : first[i + 1]]`.
        self.first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.exposure_ms = log.exposures["ts_ms"].to_numpy()
        self.event_ms = event_times(log.exposures, log.events)
        kinds = log.events["kind"].combine_chunks().dictionary_encode()
        # Share one string per kind instead of creating one per event.
        names = np.array(kinds.dictionary.to_pylist(), dtype=object)
        self.event_kind = names[kinds.indices.to_numpy()]
        numbers = np.array([schema.number[name] for name in names], np.int64)
        self._event_number = numbers[kinds.indices.to_numpy()]
        self._upserts = self._read_upserts("viewer", log.viewers) + self._read_upserts(
            "candidate", log.candidates
        )
        self._stated_texts = log.exposures["stated"]
        self._records = self._ordered(log)
        # A late record became visible no earlier than the records before it.
        self._seen_ms = np.maximum.accumulate(self._records["ts_ms"])
        # The places of the upserts in the records, and the end of the records.
        is_upsert = self._records["which"] == UPSERT
        self._upsert_at = np.append(np.flatnonzero(is_upsert), len(self._records))
        self._at = 0
        seen_seq = filled(log.exposures, "seen_seq")
        by_number = np.searchsorted(self._records["seq"], seen_seq, "right")
        is_logged = pc.is_valid(log.exposures["seen_seq"]).to_numpy()
        self.sees: I64 = np.where(is_logged, by_number, self.position(self.exposure_ms))
        self.before_snapshot: NDArray[np.bool_] = seen_seq < (self._snapshot.seq if self._snapshot else 0)
        self.sees[self.before_snapshot] = 0

    def _restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot's rows in small parts: packed, they are as large as the state."""
        for entity, packed in chain.from_iterable(map(snapshot.rows, ENTITIES)):
            rows = self.state.rows(entity)
            rows.apply(packed)
            if entity in ENTITIES:
                self.known[entity][rows.find(list(packed))] = True

    def _read_upserts(self, entity: Entity, table: pa.Table) -> list[_Upsert]:
        declared = self.state.schema.surface.fields[entity]
        upserts = []
        for batch in table.to_batches():
            for row in batch.to_pylist():
                ts_ms = EVER_MS if row["ts_ms"] is None else row["ts_ms"]
                received_ms = NEVER_MS if row["received_ms"] is None else row["received_ms"]
                # Leave out fields that the surface no longer declares.
                stated = declared if row["stated"] is None else row["stated"]
                fields = None if row["removed"] else {name: row[name] for name in stated if name in declared}
                upserts.append(_Upsert(ts_ms, received_ms, entity, row["id"], row.get("ends_ms"), fields))
        return upserts

    def _ordered(self, log: Log) -> NDArray[np.void]:
        """Return the records that change the state, in the order in which a service does."""
        seq = [filled(table, "seq") for table in (log.viewers, log.candidates, log.exposures, log.events)]
        upserts = _records(UPSERT, np.concatenate(seq[:2]), [upsert.ts_ms for upsert in self._upserts])
        exposures = _records(EXPOSURE, seq[2], self.exposure_ms)
        exposures["event"] = self.state.schema.number[IMPRESSION]
        exposures["viewer"], exposures["weight"] = self.exposure_viewer, log.exposures["one_in"]
        exposures["begin"], exposures["end"] = self.first[:-1], self.first[1:]
        # A service applied the events that it numbered at their logged times, without the
        # correction.
        event_ms = np.where(seq[3] > 0, log.events["ts_ms"].to_numpy(), self.event_ms)
        events = _records(EVENT, seq[3], event_ms)
        events["event"], events["viewer"] = self._event_number, self.event_viewer
        events["begin"] = np.arange(len(self.shown), len(self._candidates))
        events["end"] = events["begin"] + 1
        if self.state.schema.surface.impression_events:
            # Clients report impressions, so answered rankings do not count as seen.
            exposures = exposures[:0]
        else:
            # Test traffic of a service changes no state.
            is_test = pc.fill_null(pc.equal(log.exposures["traffic"], "test"), False).to_numpy()
            exposures = exposures[~(is_test & (seq[2] > 0))]
        records = np.concatenate([upserts, exposures, events])
        if self._snapshot:
            # The snapshot contains the earlier records.
            records = records[records["seq"] > self._snapshot.seq]
        by_time = np.where(records["seq"] > 0, 0, records["ts_ms"])
        # Records with equal keys keep their order: upserts, exposures, events.
        return records[np.lexsort((by_time, records["seq"]))]

    def position(self, before_ms: I64) -> I64:
        """Return the number of records strictly before each time; equal times do not count."""
        return np.searchsorted(self._seen_ms, before_ms, "left")

    def advance(self, before_ms: int) -> None:
        """Apply the records strictly before `before_ms`."""
        self.advance_to(int(self.position(np.array(before_ms))))

    def advance_to(self, end: int) -> None:
        """Apply records until `end` records in total are applied."""
        while self._at < end:
            begin = self._at
            upsert = int(self._upsert_at[np.searchsorted(self._upsert_at, begin)])
            if upsert == begin:
                self._upsert(int(self._records["place"][begin]))
                self._at = begin + 1
            else:
                self._at = min(upsert, end)
                self._observe(self._records[begin : self._at])

    def finish(self) -> None:
        """Apply all remaining records."""
        self.advance_to(len(self._records))

    def as_served(self) -> State:
        """Return the state as a service holds it: without the ids that have no row yet."""
        for rows in (self.state.viewers, self.state.candidates):
            known = self.known[rows.entity]
            for name in [name for name in self._ids[rows.entity] if not known[rows.index[name]]]:
                rows.drop(name)
        return self.state

    def candidate_rows(self, shown: I64) -> I64:
        """Return the row numbers of positions in `shown`; 0 for candidates not yet known."""
        return self._known_rows(self.shown[shown])

    def candidates(self, shown: I64) -> PackedRows:
        """Return the rows of positions in `shown`, with the fields that their requests stated."""
        rows = self.state.candidates.table[self.candidate_rows(shown)]
        if self._stated_texts.null_count == len(self._stated_texts):
            return rows
        declared = self.state.schema.surface.fields["candidate"]
        exposures = np.searchsorted(self.first, shown, "right") - 1
        # Decode the text of an exposure only when its features are computed: all would take
        # gigabytes.
        for exposure, places in groupby(range(len(shown)), exposures.__getitem__):
            text = self._stated_texts[int(exposure)].as_py()
            stated = decode_stated(text, f"row {exposure}", declared) if text else {}
            for place in places if stated else ():
                name = self.state.candidates.ids[self.shown[shown[place]]]
                for field, value in stated.get(name, {}).items():
                    rows[field][place] = encode(declared[field], value)
        return rows

    def unknown(self) -> NDArray[np.bool_]:
        """Return which shown candidates, `[P]`, had neither a row nor a stated value when shown.

        Call it before any record is applied.
        """
        rows, known = self.state.candidates, self.known["candidate"].copy()
        declared = self.state.schema.surface.fields["candidate"]
        places = ((at, self._upserts[self._records["place"][at]]) for at in self._upsert_at[:-1].tolist())
        changes = [(at, upsert) for at, upsert in places if upsert.entity == "candidate"][::-1]
        found = np.zeros(len(self.shown), bool)
        for exposure in np.argsort(self.sees, kind="stable").tolist():
            while changes and changes[-1][0] < self.sees[exposure]:
                _, upsert = changes.pop()
                known[rows.index[upsert.id]] = upsert.fields is not None
            shown = range(self.first[exposure], self.first[exposure + 1])
            found[shown] = ~known[self.shown[shown]]
            if found[shown].any() and (text := self._stated_texts[exposure].as_py()):
                stated = decode_stated(text, f"row {exposure}", declared)
                for place in shown:
                    fields = stated.get(rows.ids[self.shown[place]] or "", {})
                    found[place] &= all(value is None for value in fields.values())
        return found

    def _known_rows(self, candidates: I64) -> I64:
        return np.where(self.known["candidate"][candidates], candidates, 0)

    def _upsert(self, number: int) -> None:
        ts_ms, received_ms, entity, name, ends_ms, fields = self._upserts[number]
        row = self.state.rows(entity).index[name]
        if fields is None and entity == "viewer":
            self.state.forget(name)
        elif fields is None:
            # A candidate that comes again begins anew, in the row that was freed last.
            self.state.candidates.drop(name)
            self.state.candidates.add(name)
        else:
            self.state.upsert(entity, name, fields, ends_ms, ts_ms=ts_ms, received_ms=received_ms)
        self.known[entity][row] = fields is not None

    def _observe(self, records: NDArray[np.void]) -> None:
        """Apply exposures and events without an upsert between them."""
        begin, viewer = records["begin"], records["viewer"]
        lengths = records["end"] - begin
        at = np.repeat(begin - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        candidates = self._known_rows(self._candidates[at])
        weight = records["weight"] if records["weight"].max() > 1 else None
        self.state.observe(
            Interactions(records["event"], viewer, records["ts_ms"], lengths, candidates, weight)
        )
        self.known["viewer"][viewer] = True
