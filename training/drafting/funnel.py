"""Funnel from exposures to events: delay, rate and order of each kind of event, and the label.

The label is the kind of event that becomes the primary outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.slots import I64, IMPRESSION, Bools
from serve.log.replay import event_times
from training.data.labels import Owners
from training.drafting.profile import codes_of

# Windows are rounded up to one of these durations.
ROUND_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
ROUND_MS = (*(1_000 * s for s in ROUND_S), *(86_400_000 * d for d in (2, 3, 7, 14, 30, 60, 90, 180, 365)))
# A window covers at least this share of the delays of a kind of event.
COVERED_SHARE = 0.99
# The window of a kind whose events all have the time of their exposure, so that delays are unknown.
UNKNOWN_DELAY_MS = 1_800_000
# A window is at most this share of the log's span, because rows in the last window have no label.
WINDOW_SHARE = 0.2
# A kind is a later step than another kind if that one comes first on at least this share of rows.
FOLLOWS_SHARE = 0.8
# A later, rarer step becomes the label if it has at least this many positives.
ENOUGH_POSITIVES = 500
# Features count a kind other than the label from this many positives on. The rates of fewer events,
# spread over all candidates or viewers, tell nothing but who had one.
COUNTED_POSITIVES = 100
# Pairs of kinds that begin and end a viewer's stay at a candidate.
STAYS = {
    "join": ("leave", "part"),
    "enter": ("exit", "leave"),
    "start": ("stop", "end", "finish"),
    "open": ("close",),
    "connect": ("disconnect",),
    "check_in": ("check_out",),
    "login": ("logout",),
}
# Pairs of kinds of which the second undoes the first; they raise and lower a current number.
UNDO_KINDS = {**STAYS, "add": ("remove",)}
# Kinds by which a viewer rejects a candidate. They become outcomes with bad = true.
REJECTS = ("hide", "block", "report", "dislike", "skip", "dismiss", "mute", "downvote", "refund", "return")


@dataclass(frozen=True)
class EventStats:
    """Statistics of one kind of event."""

    kind: str
    num: int
    # The window, which covers the share COVERED_SHARE of its delays.
    within_ms: int
    # The number of shown candidates that it follows within the window.
    positives: int
    # The positives as a share of all shown candidates.
    rate: float
    # The kinds that come before it on at least the share FOLLOWS_SHARE of its rows.
    after: tuple[str, ...]
    # The reason why it cannot be the label; empty if it can.
    why_not: str


@dataclass(frozen=True)
class Funnel:
    """Shown candidates and the events on them, in N rows, one for each shown candidate.

    Attributes:
        exposure: `[N]`, the number of the row's exposure in its table.
        candidate: `[N]`, the candidate's code.
        viewer: the viewer's code for each exposure; 0 if the viewer is null.
        positive: `[N]`, whether the label follows within its window.
        covered: the share of the label's delays within its window; None if all delays are 0.
        gauge: the two kinds that raise and lower a current number, if there is such a pair.
    """

    exposure: I64
    candidate: I64
    shown_ms: I64
    viewer: I64
    positive: Bools
    event_stats: dict[str, EventStats]
    label: str
    covered: float | None
    gauge: tuple[str, str] | None

    @property
    def window_reason(self) -> str:
        """Return in words why the label's window is as long as it is."""
        if self.covered is None:
            return "a guess: its events have the time of the exposure"
        if self.covered >= COVERED_SHARE:
            return "the window holds 99 % of its delays"
        share = f"{self.covered:.0%} of its delays"
        return f"the window holds {share}; with a longer one too few rows would be known"

    @property
    def label_reason(self) -> str:
        """Return the rule by which this kind became the label."""
        if _is_deep(self.event_stats[self.label]):
            return f"the deepest step that {ENOUGH_POSITIVES} or more of the shown candidates reached"
        return f"the most frequent kind; fewer than {ENOUGH_POSITIVES} of the shown candidates reached a deeper step"

    @property
    def responses(self) -> list[EventStats]:
        """Return the kinds that can be labels, with the chosen label first."""
        able = [h for h in self.event_stats.values() if h.positives and h.kind != IMPRESSION]
        able = [h for h in able if not h.why_not.startswith("undoes")]
        return sorted(able, key=lambda h: (h.kind != self.label, -h.num, h.kind))

    def is_counted(self, h: EventStats) -> bool:
        """Return True if a kind has enough events for features that count them."""
        return h.kind == self.label or h.positives >= COUNTED_POSITIVES

    @property
    def span_ms(self) -> int:
        """Return the time from the first exposure to the last."""
        return int(self.shown_ms.max() - self.shown_ms.min())


def round_up_ms(duration_ms: float) -> int:
    """Round a duration up to the next entry of ROUND_S, for example 70 s to two minutes."""
    return next((n for n in ROUND_MS if n >= duration_ms), ROUND_MS[-1])


def funnel(tables: dict[str, pa.Table]) -> Funnel:
    """Match the events to the exposures, and choose the label.

    Raises:
        TabrankError: no event follows an exposure that showed its candidate.
    """
    exposures, events = tables["exposures"], tables["events"]
    lists = exposures["candidates"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    exposure = np.repeat(np.arange(len(exposures)), lengths)
    shown = pa.chunked_array([pc.list_flatten(lists)])
    candidate, event_candidate = codes_of(shown, events["candidate"])
    viewer, event_viewer = codes_of(exposures["viewer"], events["viewer"])
    shown_ms = exposures["ts_ms"].to_numpy().astype(np.int64)[exposure]
    kinds = np.array(events["kind"].to_pylist(), object)
    request, event_request = codes_of(exposures["request_id"], events["request_id"])
    event_ms = event_times(exposures, events)
    shown_by = request[exposure], viewer[exposure]
    owners = Owners(candidate, *shown_by, event_candidate, event_request, event_viewer, event_ms)
    row, delay = _followed(owners, kinds, shown_ms)
    is_on = {kind: (row >= 0) & (kinds == kind) for kind in sorted(set(kinds))}
    num_shown = len(np.unique(row[is_on[IMPRESSION]])) if IMPRESSION in is_on else len(exposure)
    longest = WINDOW_SHARE * (max(shown_ms.max(), event_ms.max()) - shown_ms.min())
    firsts = {kind: _first(row[on], delay[on], len(exposure)) for kind, on in is_on.items()}
    # The kinds that undo another one, by their names: `leave` undoes `join`, `unlike` undoes
    # `like`.
    pairs = ((up, down) for up in is_on for down in (*UNDO_KINDS.get(up, ()), f"un{up}"))
    downs = {down: up for up, down in pairs if down in is_on}
    event_stats = {}
    for kind, on in is_on.items():
        window = _window(delay[on], longest)
        positives = len(np.unique(row[on & (delay <= window)]))
        rate, why_not = positives / max(num_shown, 1), _why_not(kind, positives, downs)
        after = tuple(o for o in is_on if o not in (kind, IMPRESSION) and _follows(firsts[kind], firsts[o]))
        num = int((kinds == kind).sum())
        event_stats[kind] = EventStats(kind, num, window, positives, rate, after, why_not)
    label = _label(event_stats)
    delays = delay[is_on[label]]
    positive = firsts[label] <= event_stats[label].within_ms
    covered = float(np.mean(delays <= event_stats[label].within_ms)) if delays.any() else None
    gauge = next(((up, down) for down, up in downs.items()), None)
    return Funnel(exposure, candidate, shown_ms, viewer, positive, event_stats, label, covered, gauge)


def _followed(owners: Owners, kinds: NDArray[np.object_], shown_ms: I64) -> tuple[I64, I64]:
    """Return for each event the row that it follows, or −1, and its delay in ms.

    If clients report impressions, the delay counts from the impression, as it does in
    `training.data.labels.label`.
    """
    row, delay = np.full(len(kinds), -1), np.zeros(len(kinds), np.int64)
    shown, since_ms = np.arange(len(shown_ms)), shown_ms
    is_impression = kinds == IMPRESSION
    for chosen in (is_impression, ~is_impression):
        events = np.flatnonzero(chosen)
        at = owners.of(events, shown, since_ms)
        on, at = events[at >= 0], at[at >= 0]
        row[on], delay[on] = shown[at], owners.event_ms[on] - since_ms[at]
        if chosen is is_impression and len(events):
            shown, since_ms = row[on], owners.event_ms[on]
    return row, delay


def _window(delay: I64, longest: float) -> int:
    fits = [n for n in ROUND_MS if n <= longest] or [ROUND_MS[0]]
    if not len(delay):
        return fits[0]
    covering = float(np.quantile(delay, COVERED_SHARE)) if delay.any() else UNKNOWN_DELAY_MS
    return min(round_up_ms(covering), fits[-1])


def _first(row: I64, delay: I64, num_rows: int) -> NDArray[np.float64]:
    """Return `[N]` the delay of the first event on each row; infinite if there is none."""
    first = np.full(num_rows, np.inf)
    np.minimum.at(first, row, delay)
    return first


def _follows(first: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    on = np.isfinite(first)
    return bool(on.any()) and float(np.mean(other[on] <= first[on])) >= FOLLOWS_SHARE


def _why_not(kind: str, positives: int, downs: dict[str, str]) -> str:
    if kind == IMPRESSION:
        return "records what was on screen"
    if kind in downs:
        return f"undoes a {downs[kind]}"
    if not positives:
        return "follows no exposure that showed its candidate"
    return "rejects the candidate" if kind in REJECTS else ""


def _is_deep(h: EventStats) -> bool:
    return bool(h.after) and h.positives >= ENOUGH_POSITIVES


def _label(event_stats: dict[str, EventStats]) -> str:
    """Return the rarest later step with enough positives, or else the most frequent kind."""
    able = [h for h in event_stats.values() if not h.why_not]
    if not able:
        raise TabrankError(
            "events: column 'kind': no kind of event follows an exposure that showed its candidate; check that "
            "request_id, viewer, candidate and ts_ms mean the same in exposures and events"
        )
    deep = [h for h in able if _is_deep(h)]
    if deep:
        return min(deep, key=lambda h: (h.positives, h.kind)).kind
    return max(able, key=lambda h: (h.positives, bool(h.after), h.kind)).kind
