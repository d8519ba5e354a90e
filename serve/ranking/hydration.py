"""Hydrate: read the state of a batch's viewers, candidates and contexts, all of one commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from serve.contract.errors import StoreUnavailable
from serve.features.rows import Schema, encode
from serve.features.slots import I64, Bools, PackedRows, Values
from serve.ranking.order import UNKNOWN, WORTHS, Standings
from serve.ranking.query import Query
from serve.stores.candidate_table import CandidateTable

# Is called with why answers are degraded: the reason, the error, and a request of the batch.
OnDegraded = Callable[[str, Exception, str | None], None]


class HydratedBatch(NamedTuple):
    """Hydrated queries: viewers `[B]`, candidates `[R]` and contexts `[B]` of one commit."""

    queries: Sequence[Query]
    # The rows of each query.
    parts: list[slice]
    viewers: PackedRows
    unknown_viewer: list[bool]
    # Why a query gets the popular order instead of its arm's order; None if it does not.
    failed: list[str | None]
    # Row numbers in the candidate table, 0 for candidates without a row.
    numbers: I64
    # Candidates without a row and without a stated value.
    unknown: Bools
    candidates: PackedRows
    # These belong to the live candidates' own tables, which the next read of the store changes.
    values: Values
    standing: Standings
    context: PackedRows
    request_of_row: I64
    now_ms: I64
    seen_seq: int


class Hydrator:
    """Hydrate queries from the store and the table of live candidates."""

    def __init__(self, schema: Schema, live: CandidateTable, on_degraded: OnDegraded) -> None:
        self._schema = schema
        self._live = live
        self._on_degraded = on_degraded
        self._blank_viewer = schema.blank("viewer").tobytes()

    def hydrate(self, queries: Sequence[Query]) -> HydratedBatch:
        """Read the viewers from the store, then look up the candidates of the same commit.

        If the store is down, every viewer is blank, and arms that need state get the popular order.
        """
        named = [query.viewer for query in queries if query.viewer is not None]
        try:
            packed = dict(zip(named, self._live.read(named), strict=True))
        except StoreUnavailable as error:
            self._on_degraded("store_unavailable", error, queries[0].request_id)
            failed = [None if query.arm.scorer in WORTHS else "store_unavailable" for query in queries]
            return self.look_up(queries, {}, failed)
        return self.look_up(queries, packed, [None] * len(queries))

    def look_up(
        self, queries: Sequence[Query], packed: Mapping[str, bytes | None], failed: Sequence[str | None]
    ) -> HydratedBatch:
        """Hydrate queries; `packed` holds the viewers that were read, None for unknown ones.

        A popular order needs no viewers. `failed` says why each query gets one, or None.
        """
        schema, blank = self._schema, self._blank_viewer
        viewers = [packed.get(query.viewer or "", blank) for query in queries]
        numbers = self._live.rows.find([name for query in queries for name in query.candidates])
        candidates = self._live.rows.table.take(numbers)
        lengths = [len(query.candidates) for query in queries]
        ends = accumulate(lengths)
        request_of_row = np.repeat(np.arange(len(queries)), lengths)
        now_ms = np.array([query.now_ms for query in queries], np.int64)
        batch = HydratedBatch(
            queries=queries,
            parts=[slice(end - length, end) for length, end in zip(lengths, ends, strict=True)],
            viewers=np.frombuffer(b"".join([row or blank for row in viewers]), schema.viewer),
            unknown_viewer=[row is None for row in viewers],
            failed=list(failed),
            numbers=numbers,
            unknown=numbers == 0,
            candidates=candidates,
            values=self._live.rows.values_of(numbers),
            # As an integer, True is the standing `ENDED`.
            standing=(candidates["ends_ms"] <= now_ms[request_of_row]).view(np.int8),
            context=schema.context_rows([query.context for query in queries]),
            request_of_row=request_of_row,
            now_ms=now_ms,
            seen_seq=self._live.seq,
        )
        self._overwrite_stated(batch)
        if schema.surface.unknown_candidates == "last":
            batch.standing[batch.unknown] = UNKNOWN
        return batch

    def _overwrite_stated(self, batch: HydratedBatch) -> None:
        """Overwrite candidate fields with the request-time fields that the requests state."""
        declared = self._schema.surface.fields["candidate"]
        for query, part in zip(batch.queries, batch.parts, strict=True):
            for place, fields in query.stated.items():
                row = part.start + place
                for name, value in fields.items():
                    batch.candidates[name][row] = encode(declared[name], value)
                    batch.unknown[row] &= value is None
