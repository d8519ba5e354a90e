"""What follows a shown candidate: each event's delay, how often it happens and after which other, and the label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.slots import IMPRESSION
from serve.log.replay import event_times
from training.data.labels import Owners
from training.drafting.profile import I64, codes_of

NICE_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
NICE_MS = (*(1_000 * s for s in NICE_S), *(86_400_000 * d for d in (2, 3, 7, 14, 30, 60, 90, 180, 365)))
COVERED = 0.99  # of an event's delays lie within its window
WINDOW_SHARE = 0.2  # of the log's span, at most: the rows of a last window are no training rows
FOLLOWS = 0.8  # of an event's rows had another before: it is a step deeper
ENOUGH_POSITIVES = 500  # to choose a rarer, deeper label over a frequent one
DOWN_OF = {
    "join": ("leave", "part"),
    "enter": ("exit", "leave"),
    "start": ("stop", "end", "finish"),
    "open": ("close",),
    "connect": ("disconnect",),
    "check_in": ("check_out",),
    "login": ("logout",),
    "add": ("remove",),
}
AGAINST = ("hide", "block", "report", "dislike", "skip", "dismiss", "mute", "downvote", "refund", "return")


@dataclass(frozen=True)
class Happening:
    """One kind of event: how often, how soon, and after what it follows a shown candidate."""

    kind: str
    num: int
    within_ms: int  # holds COVERED of its delays
    positives: int  # shown candidates that it follows within the window
    rate: float  # of all that were shown
    after: tuple[str, ...] = ()  # the kinds that come before it on FOLLOWS of its rows
    why_not: str = ""  # why it is no label


@dataclass(frozen=True)
class Funnel:
    """The exposures' rows and the events on them. N rows: one for each shown candidate."""

    exposure: I64  # [N], row of the exposures table
    candidate: I64  # [N], a code
    shown_ms: I64  # [N]
    viewer: I64  # of each exposure, a code; −1 for nobody
    happenings: dict[str, Happening]
    label: str
    covered: float  # of the label's delays, by its window
    gauge: tuple[str, str] | None  # the kinds that go up and down, if a pair of them is there

    @property
    def window_reason(self) -> str:
        """Why the label's window is as long as it is."""
        return (
            "the window holds 99 % of its delays"
            if self.covered >= COVERED
            else (
                f"the window holds {self.covered:.0%} of its delays; a longer one would leave too few rows of this log"
            )
        )

    @property
    def span_ms(self) -> int:
        """From the first exposure to the last."""
        return int(self.shown_ms.max() - self.shown_ms.min())


def nice_ms(duration_ms: float) -> int:
    """The smallest round duration that is not shorter."""
    return next((n for n in NICE_MS if n >= duration_ms), NICE_MS[-1])


def words(duration_ms: int) -> str:
    """A duration as a surface writes it."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        if duration_ms % size == 0:
            return f"{duration_ms // size}{unit}"
    return f"{duration_ms / 1000:g}s"


def funnel(tables: dict[str, pa.Table]) -> Funnel:
    """Match the events to the exposures, and choose the label.

    Raises:
        TabrankError: if no event follows an exposure that showed its candidate.
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
    if "request_id" not in events.column_names:
        events = events.append_column("request_id", pa.nulls(len(events), pa.string()))
    request, event_request = codes_of(exposures["request_id"], events["request_id"])
    event_ms = event_times(exposures, events)
    owners = Owners(
        candidate,
        request[exposure] + 1,
        viewer[exposure] + 1,
        event_candidate,
        event_request + 1,
        event_viewer + 1,
        event_ms,
    )
    row, delay = _followed(owners, kinds, shown_ms)
    is_on = {kind: (row >= 0) & (kinds == kind) for kind in sorted(set(kinds))}
    num_shown = len(np.unique(row[is_on[IMPRESSION]])) if IMPRESSION in is_on else len(exposure)
    longest = WINDOW_SHARE * (max(shown_ms.max(), event_ms.max()) - shown_ms.min())
    happenings = {}
    for kind, on in is_on.items():
        window = _window(delay[on], longest)
        rows = np.unique(row[on & (delay <= window)])
        rate = len(rows) / max(num_shown, 1)
        happenings[kind] = Happening(kind, int((kinds == kind).sum()), window, len(rows), rate)
    firsts = {kind: _first(row[on], delay[on], len(exposure)) for kind, on in is_on.items()}
    downs = _downs(list(is_on))
    for kind, one in happenings.items():
        why = _why_not(kind, one, downs)
        after = tuple(
            o for o in is_on if o not in (kind, IMPRESSION) and _comes_after(firsts[kind], firsts[o])
        )
        happenings[kind] = Happening(**{**vars(one), "after": after, "why_not": why})
    label = _label(happenings)
    covered = float(np.mean(delay[is_on[label]] <= happenings[label].within_ms))
    gauge = next(((up, down) for down, up in downs.items()), None)
    return Funnel(exposure, candidate, shown_ms, viewer, happenings, label, covered, gauge)


def _followed(owners: Owners, kinds: NDArray[np.object_], shown_ms: I64) -> tuple[I64, I64]:
    """`[events]`: the shown row that each event is on, or −1, and how long after it, in ms: after its impression where
    clients report them, as `training.data.labels.label` has it."""
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
    fits = [n for n in NICE_MS if n <= longest] or [NICE_MS[0]]
    return min(nice_ms(float(np.quantile(delay, COVERED))), fits[-1]) if len(delay) else fits[0]


def _first(row: I64, delay: I64, num_rows: int) -> NDArray[np.float64]:
    """`[N]`: the delay of a kind's first event on each shown row, infinite without one."""
    first = np.full(num_rows, np.inf)
    np.minimum.at(first, row, delay)
    return first


def _comes_after(first: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    on = np.isfinite(first)
    return bool(on.any()) and float(np.mean(other[on] <= first[on])) >= FOLLOWS


def _downs(kinds: list[str]) -> dict[str, str]:
    """The kinds that take another back, by name: `leave` of `join`, `unlike` of `like`."""
    found = {}
    for up in kinds:
        for down in (*DOWN_OF.get(up, ()), f"un{up}"):
            if down in kinds:
                found[down] = up
    return found


def _why_not(kind: str, one: Happening, downs: dict[str, str]) -> str:
    if kind == IMPRESSION:
        return "says what was on screen"
    if kind in downs:
        return f"takes back a {downs[kind]}"
    if kind in AGAINST:
        return "speaks against the candidate"
    return "" if one.positives else "follows no exposure that showed its candidate"


def _label(happenings: dict[str, Happening]) -> str:
    """Of the steps that come after another, the rarest with enough positives; else the most frequent kind."""
    able = [h for h in happenings.values() if not h.why_not]
    if not able:
        raise TabrankError(
            "events: column 'kind': no kind of event follows an exposure that showed its candidate; check that "
            "request_id, viewer, candidate and ts_ms mean the same in exposures and events"
        )
    deep = [h for h in able if h.after and h.positives >= ENOUGH_POSITIVES]
    if deep:
        return min(deep, key=lambda h: (h.positives, h.kind)).kind
    return max(able, key=lambda h: (h.positives, bool(h.after), h.kind)).kind
