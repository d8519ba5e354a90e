"""Application of records to the state, with the rows that they change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.features.interactions import Interactions
from serve.features.rows import NEVER_MS, CandidateRows, RowTable, State
from serve.features.slots import CANDIDATE_ID, IMPRESSION, field_of_key
from serve.log.events import Ended, Exposure, JournalEntry, Record, viewer_of
from serve.stores.protocol import Store

# Packed rows by id: of viewers, and of candidates.
PackedPair = tuple[dict[str, bytes], dict[str, bytes]]


class RecordApplier:
    """Apply records; collect the ids that they change, and apply exposures and events in batches.

    A batch ends at a record that changes attributes. Call `observe` after the last record. A
    candidate may change although no record names it: when a viewer leaves it for others, or is
    forgotten.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._impressions = not state.schema.surface.impression_events
        # The batch: of each record its event, the viewer's row, the candidates, the time, and how
        # many records it stands for.
        self._run: list[tuple[str, int, Sequence[str], int, int]] = []
        self.viewers: dict[str, None] = {}
        self.candidates: dict[str, None] = {}

    def apply(self, record: Record, received_ms: int = NEVER_MS) -> None:
        """Apply one record, or add it to the batch; add the ids that it changes."""
        if isinstance(record, Exposure):
            if self._impressions and record.traffic != "test":
                self._observed(IMPRESSION, record.viewer, record.candidates, record.ts_ms, record.one_in)
        elif isinstance(record, Event):
            self._observed(record.kind, record.viewer, (record.candidate,), record.ts_ms or 0)
        else:
            self.observe()
            self._change(record, received_ms)

    def _observed(
        self, event: str, viewer: str | None, candidates: Sequence[str], ts_ms: int, weight: int = 1
    ) -> None:
        row = 0
        if viewer is not None:
            row = self._state.viewers.add(viewer)
            self.viewers[viewer] = None
        self._run.append((event, row, candidates, ts_ms, weight))

    def _change(self, record: Record, received_ms: int) -> None:
        times = {"ts_ms": record.ts_ms or 0, "received_ms": received_ms}
        if isinstance(record, Viewer):
            self._state.upsert("viewer", record.id, record.fields, **times)
            self.viewers[record.id] = None
        elif isinstance(record, Candidate):
            self._state.upsert("candidate", record.id, record.fields, record.ends_ms, **times)
            self.candidates[record.id] = None
        elif isinstance(record, Forget):
            self._add_changed(self._state.forget(record.viewer))
            self._state.viewers.drop(record.viewer)
            self.viewers[record.viewer] = None
        elif isinstance(record, Ended):
            self._state.candidates.drop(record.id)
            self.candidates[record.id] = None

    def observe(self) -> None:
        """Apply the batch. A call for each record would take ten times as long."""
        run, self._run = self._run, []
        if run:
            events, viewers, shown, times, weights = zip(*run, strict=True)
            numbers = [self._state.schema.number[event] for event in events]
            lengths = np.array([len(candidates) for candidates in shown])
            rows = self._state.candidates.find(list(chain.from_iterable(shown)))
            weight = np.array(weights) if max(weights) > 1 else None
            left = self._state.observe(
                Interactions(np.array(numbers), np.array(viewers), np.array(times), lengths, rows, weight)
            )
            changed = np.zeros(len(self._state.candidates.ids), bool)
            changed[rows] = changed[left] = True
            self._add_changed(changed.nonzero()[0].tolist())

    def _add_changed(self, rows: Iterable[int]) -> None:
        names = map(self._state.candidates.ids.__getitem__, rows)
        self.candidates.update((name, None) for name in names if name is not None)


def packed(rows: RowTable, names: Iterable[str]) -> dict[str, bytes]:
    """Return the packed rows of ids, b"" for an id without a row."""
    names = list(names)
    # To pack row by row is faster than to pack all rows at once, which would also copy them.
    found = zip(names, rows.find(names).tolist(), strict=True)
    return {name: rows.table[row].tobytes() if row else b"" for name, row in found}


def read_rows(
    state: State, store: Store, seq: int, viewers: Iterable[str], added: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Read the rows of viewers as the store has them at `seq`, and rows of values that are at rest.

    A value at rest is one that no candidate has; the store keeps it among the viewers. Candidates
    with the fields `added` may bring such values back. Return the keys of these values.
    """
    brought = dict.fromkeys(key for fields in added for key in state.candidates.absent(fields))
    names = list(dict.fromkeys((*viewers, *brought)))
    rows = zip(names, store.read(names, seq)[0], strict=True)
    found = {name: row for name, row in rows if row is not None}
    at_rest = [key for key in brought if key in found]
    for key in at_rest:
        state.candidates.bring(key, found.pop(key))
    state.viewers.apply(found)
    return at_rest


def packed_changes(state: State, viewers: Iterable[str], candidates: Iterable[str]) -> PackedPair:
    """Return the packed rows of viewers and of candidates that changed, with those of values.

    A store keeps a value that a candidate has among the candidates, which every replica holds. It
    keeps any other value among the viewers. `viewers` must include the keys that `read_rows`
    returned.
    """
    live = state.candidates
    held, at_rest = packed_values(live, {field: live.take_changed(field) for field in live.values})
    for key in at_rest:
        live.values[field_of_key(key)].drop(key)
    gone = dict.fromkeys(at_rest, b"")
    return packed(state.viewers, viewers) | at_rest, packed(live, candidates) | held | gone


def packed_values(candidates: CandidateRows, rows: Mapping[str, Iterable[int]]) -> PackedPair:
    """Return the packed rows of values that a candidate has, and of values that are at rest."""
    parts: PackedPair = {}, {}
    for field, at in rows.items():
        values = candidates.values[field]
        blank = values.table[0].tobytes()
        for key, row in packed(values, [str(values.ids[place]) for place in at]).items():
            is_held = candidates.is_held(field, values.index[key])
            is_kept = is_held or (row != blank and field != CANDIDATE_ID.name)
            parts[not is_held][key] = row if is_kept else b""
    return parts


def apply_records(
    candidates: CandidateRows, store: Store, seq: int, entry: JournalEntry, now_ms: int
) -> tuple[dict[str, bytes], dict[str, bytes], int]:
    """Apply records in order to the live table, and to their viewers' rows as stored at `seq`.

    The viewers then count as seen at `now_ms` of the service's clock. Values that no candidate has
    are among the viewers, and are read from there when a candidate brings one back.

    Returns:
        The packed rows of the viewers that changed, those of the candidates that changed, and how
        many of the viewers' rows are new.
    """
    state = State(candidates.schema)
    state.candidates = candidates
    names = filter(None, map(viewer_of, entry.records))
    added = (record.fields for record in entry.records if isinstance(record, Candidate))
    at_rest = read_rows(state, store, seq, names, added)
    num_stored = len(state.viewers) + len(at_rest)
    changes = RecordApplier(state)
    for record in entry.records:
        changes.apply(record, entry.received_ms)
    changes.observe()
    state.viewers.see(now_ms)
    viewers, live = packed_changes(state, [*changes.viewers, *at_rest], changes.candidates)
    return viewers, live, max(len(viewers) - num_stored, 0)
