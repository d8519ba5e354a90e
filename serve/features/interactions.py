"""Exposures and events as the state takes them: arrays of many records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from serve.features.slots import I64, Bools

# Fewer records than this are applied one by one. Most of them are of one viewer, so rounds of
# records of different viewers would be slower.
MIN_RECORDS_AT_ONCE = 16
# Limits how many candidates are applied at once, where each record counts as RECORD_COST more, so
# that temporary arrays stay within some MB.
MAX_CANDIDATES_AT_ONCE = 1 << 14
RECORD_COST = 32


@dataclass(eq=False)
class Interactions:
    """Sequence of N exposures and events in order, with no other record between them.

    An event has one candidate; an exposure is an impression of each of its candidates.

    `event` `[N]`: index in `Schema.events`. `viewer` `[N]`: row number; row 0 takes no state.
    `ts_ms` `[N]`. `lengths` `[N]`: number of candidates of each record.
    `candidates` `[P]`: row numbers. `weight` `[N]`: how many records each one stands for, because
    the others were not logged; None if each stands for itself.
    """

    event: I64
    viewer: I64
    ts_ms: I64
    lengths: I64
    candidates: I64
    weight: I64 | None = None

    @cached_property
    def events(self) -> set[int]:
        """The events that occur."""
        return set(self.event.tolist())

    def only(self, event: int) -> Interactions:
        """Return the records of one event."""
        if len(self.events) == 1:
            return self
        chosen = self.event == event
        return self._part(chosen, np.repeat(chosen, self.lengths))

    def parts(self) -> Iterator[Interactions]:
        """Yield parts that are fast to apply at once.

        Few records are yielded one by one, many in parts of bounded size.
        """
        num = len(self.event)
        if num == 1:
            yield self
            return
        ends = np.cumsum(self.lengths)
        cuts = np.arange(num + 1)
        if num >= MIN_RECORDS_AT_ONCE:
            changes = np.diff((ends + RECORD_COST * cuts[1:]) // MAX_CANDIDATES_AT_ONCE, prepend=0, append=-1)
            cuts = np.concatenate([[0], changes[1:].nonzero()[0] + 1])
        for begin, end in pairwise(cuts.tolist()):
            yield self._part(slice(begin, end), slice(ends[begin] - self.lengths[begin], ends[end - 1]))

    def _part(self, records: slice | Bools, candidates: slice | Bools) -> Interactions:
        of_record = (self.event, self.viewer, self.ts_ms, self.lengths)
        event, viewer, ts_ms, lengths = (values[records] for values in of_record)
        weight = None if self.weight is None else self.weight[records]
        return Interactions(event, viewer, ts_ms, lengths, self.candidates[candidates], weight)
