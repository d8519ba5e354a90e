"""Labels: what followed each shown candidate. Candidates without any known label are no rows.

In shapes, P is the number of shown candidates of all exposures end to end, as in `Replay.shown`; O
is the number of predicted outcomes, and E the number of events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.features.rows import EVER_MS
from serve.features.slots import I64, IMPRESSION
from serve.features.surface import Surface
from serve.log.reader import Log
from serve.log.replay import Codes, Replay
from training.data.amounts import amounts

# The length of a window that never closes.
FOREVER_MS = int(np.iinfo(np.int64).max)


def label(replay: Replay, log: Log, surface: Surface) -> NDArray[np.float32]:
    """Return `[P, O]` the amount of each predicted outcome in its window, as a share of its cap.

    The window begins with the exposure. If clients report impressions on this surface, it begins
    with the impression instead.

    An outcome is NaN where it is unknown:

    - its window is still open at the end of the log;
    - one of its amounts is unknown: a stay without an end, or an event without its value;
    - clients report impressions, and the candidate has none;
    - the exposure was erased.

    Erased events label nothing.
    """
    owners = Owners.in_replay(replay, log)
    shown = np.arange(len(replay.shown))
    since_ms = last_ms = np.repeat(replay.exposure_ms, np.diff(replay.first))
    if surface.impression_events:
        events = np.flatnonzero(replay.event_kind == IMPRESSION)
        at = owners.of(events, shown, since_ms, surface.longest_window_ms)
        shown, since_ms = at[at >= 0], replay.event_ms[events[at >= 0]]
        last_ms = np.full(len(replay.shown), EVER_MS)
        np.maximum.at(last_ms, shown, since_ms)
    seen = last_ms > EVER_MS
    seen &= ~np.repeat(pc.fill_null(log.exposures["erased"], False).to_numpy(), np.diff(replay.first))
    kind = np.where(pc.fill_null(log.events["erased"], False).to_numpy(), "", replay.event_kind)
    # Events without a viewer belong to the same person if they name the same request.
    who = np.where(owners.event_viewer > 0, owners.event_viewer, -1 - owners.event_request)
    value = log.events["value"].to_numpy()
    outcomes = np.empty((len(replay.shown), len(surface.predicted)), np.float32)
    for column, outcome in zip(outcomes.T, surface.predicted.values(), strict=True):
        amount = amounts(outcome, kind, replay.event_ms, who, replay.event_candidate, value)
        events = np.flatnonzero(kind == outcome.event)
        at = owners.of(events, shown, since_ms, outcome.within_ms)
        total = np.zeros(len(replay.shown))
        np.add.at(total, shown[at[at >= 0]], amount[events[at >= 0]])
        is_closed = last_ms <= log.ends_ms - outcome.within_ms
        column[:] = np.where(seen & is_closed, np.clip(total / outcome.scale, 0.0, 1.0), np.nan)
    return outcomes


@dataclass(frozen=True)
class Owners:
    """Matches events to the shown candidates that they belong to.

    An event with a `request_id` belongs to that exposure. An event without one belongs to the
    viewer's latest exposure of the candidate. Candidates, requests and viewers are codes that mean
    the same in exposures and events. The code 0 means no request or no viewer.
    """

    # [P], the shown candidates
    shown: I64
    # [P]
    shown_request: I64
    # [P]
    shown_viewer: I64
    # [E]
    event_candidate: I64
    # [E]
    event_request: I64
    # [E]
    event_viewer: I64
    # [E], as `serve.log.replay.event_times` defines them
    event_ms: I64

    @classmethod
    def in_replay(cls, replay: Replay, log: Log) -> Owners:
        """Return the owners of the exposures and events of a replayed log."""
        lengths = np.diff(replay.first)
        request, event_request = Codes(log.exposures["request_id"], log.events["request_id"]).columns
        return cls(
            replay.shown,
            np.repeat(request, lengths),
            np.repeat(replay.exposure_viewer, lengths),
            replay.event_candidate,
            event_request,
            replay.event_viewer,
            replay.event_ms,
        )

    def of(self, events: I64, shown: I64, since_ms: I64, within_ms: int = FOREVER_MS) -> I64:
        """Return for each of the `events` the index of its latest match in (`shown`, `since_ms`).

        The index is −1 if there is no match, or if the match lies more than `within_ms` back.
        """
        num_candidates = 1 + max(self.shown.max(initial=0), self.event_candidate.max(initial=0))
        named = self.event_request[events] > 0
        at = np.full(len(events), -1)
        for chosen, owner, event_owner in (
            (named, self.shown_request, self.event_request),
            (~named, self.shown_viewer, self.event_viewer),
        ):
            mine = events[chosen]
            # An exposure without a viewer can only be matched by its request.
            known = owner[shown] > 0
            keys = np.where(known, owner[shown] * num_candidates + self.shown[shown], -1)
            wanted = event_owner[mine] * num_candidates + self.event_candidate[mine]
            at[chosen] = _last(keys, since_ms, wanted, self.event_ms[mine], within_ms)
        return at


def _last(keys: I64, times: I64, key: I64, time: I64, within: int) -> I64:
    """Return for each (key, time) the index of the key's latest entry up to that time, or −1."""
    shown = pd.DataFrame({"key": keys, "ms": times, "at": np.arange(len(keys))})
    wanted = pd.DataFrame({"key": key, "ms": time}).sort_values("ms", kind="stable")
    found = pd.merge_asof(wanted, shown.sort_values("ms", kind="stable"), on="ms", by="key", tolerance=within)
    return found["at"].fillna(-1).set_axis(wanted.index).sort_index().to_numpy(np.int64)
