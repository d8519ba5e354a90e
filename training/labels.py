"""Labels: which shown candidates are rows, and which of those are positive.

P shown candidates, of all exposures end to end, as in `Replay.shown`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.kinds import IMPRESSION
from serve.log import Log
from serve.replay import EVER_MS, Codes, Replay
from serve.state import I64
from serve.surface import Surface


@dataclass(frozen=True)
class Labels:
    """`positive` and `is_row`, bool [P], and what was met on the way: `counts`."""

    positive: NDArray[np.bool_]
    is_row: NDArray[np.bool_]
    counts: dict[str, int]


def label(replay: Replay, log: Log, surface: Surface) -> Labels:
    """A row is positive if the label event follows within the window.

    The window begins with the exposure or, where the surface has client impressions, with an impression;
    what was not on screen is no row then. Rows with a window that is still open at the log's end are left out.
    """
    owners = _Owners(replay, log)
    within_ms = surface.label.within_ms
    shown, since_ms = np.arange(len(replay.shown)), owners.exposure_ms
    last_ms = since_ms
    if surface.impression_events:
        events, at = owners.of(IMPRESSION, within_ms, shown, since_ms)
        shown, since_ms = at[at >= 0], replay.event_ms[events[at >= 0]]
        last_ms = np.full(len(replay.shown), EVER_MS)
        np.maximum.at(last_ms, shown, since_ms)
    seen = last_ms > EVER_MS
    is_open = seen & (last_ms > log.ends_ms - within_ms)
    _, at = owners.of(surface.label.event, within_ms, shown, since_ms)
    positive = np.zeros(len(replay.shown), bool)
    positive[shown[at[at >= 0]]] = True
    counts = {"open_rows": int(is_open.sum()), "unmatched_label_events": int((at < 0).sum())}
    return Labels(positive, seen & ~is_open, counts)


class _Owners:
    """Which shown candidate an event belongs to.

    An event with a `request_id` belongs to that exposure; one without belongs to the viewer's latest
    exposure of that candidate.
    """

    def __init__(self, replay: Replay, log: Log) -> None:
        self.replay = replay
        lengths = np.diff(replay.first)
        self.exposure = np.repeat(np.arange(len(lengths)), lengths)
        self.exposure_ms = np.repeat(replay.exposure_ms, lengths)
        self.exposure_request, self.event_request = Codes(
            log.exposures["request_id"], log.events["request_id"]
        ).columns
        self.num_candidates = 1 + int(max(replay.shown.max(initial=0), replay.event_candidate.max(initial=0)))

    def of(self, kind: str, within_ms: int, shown: I64, since_ms: I64) -> tuple[I64, I64]:
        """The events of a kind, and for each the last place in (`shown`, `since_ms`) that it follows.

        −1 where there is none, or where its time is more than the window before.
        """
        replay = self.replay
        events = np.flatnonzero(replay.event_kind == kind)
        named = self.event_request[events] > 0
        at = np.full(len(events), -1)
        for chosen, owner, event_owner in (
            (named, self.exposure_request, self.event_request),
            (~named, replay.exposure_viewer, replay.event_viewer),
        ):
            mine, exposure = events[chosen], self.exposure[shown]
            known = owner[exposure] > 0  # nobody's exposures are found by request alone
            keys = np.where(known, self._key(owner[exposure], replay.shown[shown]), -1)
            wanted = self._key(event_owner[mine], replay.event_candidate[mine])
            at[chosen] = _last(keys, since_ms, wanted, replay.event_ms[mine], within_ms)
        return events, at

    def _key(self, owner: I64, candidate: I64) -> I64:
        return owner * self.num_candidates + candidate


def _last(keys: I64, times: I64, key: I64, time: I64, within: int) -> I64:
    """For each (key, time): which of (keys, times) has that key and the last time at or before, or −1."""
    order = np.lexsort((times, keys))
    everything = np.concatenate([keys[order], key])
    stamps = np.concatenate([times[order], time])
    is_query = np.repeat([False, True], [len(keys), len(key)])  # at equal times the exposure comes first
    merged = np.lexsort((is_query, stamps, everything))
    before = np.cumsum(~is_query[merged]) - 1
    at = np.empty(len(key), np.int64)
    queries = is_query[merged]
    at[merged[queries] - len(keys)] = before[queries]
    found = order[at] if len(order) else at  # −1 takes the last; its key tells
    fits = at >= 0
    fits[fits] &= (keys[found[fits]] == key[fits]) & (time[fits] <= times[found[fits]] + within)
    return np.where(fits, found, -1)
