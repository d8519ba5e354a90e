"""Live quality: join events to the scores of the rankings that viewers saw, as they arrive."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from serve.contract.errors import TabrankError
from serve.contract.records import Event
from serve.contract.validation import UNITS_MS, json_value
from serve.features.slots import F64, IMPRESSION, Bools
from serve.features.surface import Surface
from serve.log.events import Exposure, Record
from serve.log.predictions import predictions
from serve.model.artifact import load
from serve.rollout.score_comparison import cell_counts

log = logging.getLogger("tabrank")
# An event is joined this long after its own time, and events are joined in the order of their
# times, because exposures, impressions and other events come in separate calls. An exposure that
# comes even later is left out.
GRACE_MS = 60_000
# Limits the memory of exposures and events that wait. 64 MiB hold 7,000 rankings of 55 candidates.
MAX_BYTES = 64 << 20
# Viewers count whose hash, from 0 on, is below the counted share of this number.
ALL = 1 << 16
# Memory of an exposure, of an event, and of each candidate, impression and amount of an exposure.
# These are upper bounds, without the characters of ids.
EXPOSURE_BYTES, EVENT_BYTES, ENTRY_BYTES = 1_536, 1_024, 128
# An event that names no request belongs to one of this many last exposures of its viewer.
RECENT = 100
# Outcomes that are known only after a longer time are left out, because too many exposures would
# have to wait for them.
MAX_WITHIN_MS = 2 * UNITS_MS["h"]
# Time of a stay that is over.
ENDED = -1
# An artifact that could not be read is tried again after this time.
RETRY_MS = 60_000

# Sums by the labels of the metric `tabrank_quality`: arm, version, measure, cell of the scores,
# outcome, and whether that is the primary outcome.
Sums = Mapping[tuple[str, ...], float]


@dataclass(slots=True)
class _Shown:
    """Exposure that waits, and what followed it: times and amounts, by outcome and candidate."""

    exposure: Exposure
    # Times of the exposure and of impressions, by candidate.
    times_ms: list[dict[str, int]]
    amounts: dict[str, dict[str, float]]
    # For each outcome that is a stay, when the last one began, or ENDED.
    begun_ms: dict[str, dict[str, int]]
    num_bytes: int


class _Version(NamedTuple):
    """What an artifact states: each outcome's examination by position, and cells of scores."""

    theta: dict[str, F64]
    cells: Any


class LiveQuality:
    """Sums of the amounts of each outcome that predictions promised, and of those that came.

    An exposure counts for an outcome once the window of that outcome has closed, so that all sums
    are over the same candidates. A restart loses the exposures that wait for this.

    Events are matched to candidates, and get their amounts, as in training
    (`training.data.labels`). The window of a stay is longer by its cap, so that a stay that begins
    late can end. A stay without an end is left out of all sums.

    The expected amount is the prediction times the examination of the position, which is how likely
    people look there. Artifacts are read from the folder `models`. Nothing is expected of a version
    that cannot be read.

    Either all exposures of a viewer count, or none. If those that wait exceed `max_bytes`, only
    half as many viewers count. Once they take less than a quarter of it, twice as many count.
    """

    def __init__(self, surface: Surface, models: Path, max_bytes: int = MAX_BYTES) -> None:
        self._by_client, self._primary = surface.impression_events, next(iter(surface.predicted))
        held = {name: one for name, one in surface.outcomes.items() if one.known_ms <= MAX_WITHIN_MS}
        # Of an outcome that is not predicted, there is nothing to measure but its amount.
        if left_out := [name for name in surface.predicted if name not in held]:
            log.warning("live quality: windows of more than two hours are not measured: %s", left_out)
        # Outcomes whose windows close first come first.
        self._outcomes = dict(sorted(held.items(), key=lambda of: of[1].known_ms))
        self._stays = {name: one for name, one in held.items() if one.until}
        # An impression comes within a window after the exposure, and events come within a window
        # after it.
        self._seen_within_ms = max((one.within_ms for one in held.values()), default=0)
        later_ms = self._seen_within_ms * self._by_client
        self._spans_ms = {name: later_ms + one.known_ms for name, one in self._outcomes.items()}
        self._span_ms = max(self._spans_ms.values(), default=0)
        self._kinds = {IMPRESSION, *(kind for one in held.values() for kind in (one.event, one.until))}
        self._models, self._max_bytes, self._num_bytes = models, max_bytes, 0
        # Share of the viewers that count; when it last grew; and the time up to which events are
        # joined.
        self._share, self._grown_ms, self._joined_ms = 1.0, 0, 0
        # What artifacts state, by version, and when to try an unreadable one again.
        self._versions: dict[str, _Version] = {}
        self._retry_ms: dict[str, int] = {}
        # Heap of events by time. At the same time, impressions come first, and ids break ties.
        self._events: list[tuple[int, bool, str, Event]] = []
        # Exposures by request, oldest first: those of each viewer, those whose window of an outcome
        # is still open, and all, which are those of the outcome whose window closes last.
        self._shown_to: defaultdict[str, dict[str, _Shown]] = defaultdict(dict)
        self._open: dict[str, dict[str, _Shown]] = {name: {} for name in self._spans_ms}
        self._shown: dict[str, _Shown] = next(reversed(self._open.values()), {})
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, records: Iterable[Record], now_ms: int) -> None:
        """Take committed records at `now_ms` of the service's clock, and count what has closed."""
        self._grown_ms = self._grown_ms or now_ms
        for record in records:
            if isinstance(record, Exposure) and record.traffic != "test":
                self._show(record)
            elif isinstance(record, Event) and record.kind in self._kinds:
                self._happen(record)
            while self._num_bytes > self._max_bytes and self._share * ALL > 1:
                self._halve()
        # With the event clock, a commit may hold records that come late, so time must not go back.
        self._joined_ms = max(self._joined_ms, now_ms - GRACE_MS)
        while self._events and self._events[0][0] <= self._joined_ms:
            self._join(*heapq.heappop(self._events))
        for name, span_ms in self._spans_ms.items():
            while oldest := next(iter(self._open[name].values()), None):
                if oldest.exposure.ts_ms > self._joined_ms - span_ms:
                    break
                self._close(name, oldest)
        is_low = self._share < 1 and self._num_bytes < self._max_bytes / 4
        if is_low and self._joined_ms - self._grown_ms >= self._span_ms:
            self._share, self._grown_ms = self._share * 2, now_ms

    def take(self) -> Sums:
        """Return the sums since the last call."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums

    def _add(self, arm: str, model: str, outcome: str = "", cell: str = "", **sums: float) -> None:
        """Add to the sums of an outcome or, if `outcome` is empty, of rankings and events."""
        is_primary = outcome and ("yes" if outcome == self._primary else "no")
        for measure, value in sums.items():
            self._sums[arm, model, measure, cell, outcome, is_primary] += float(value)

    def _counts(self, record: Exposure | Event) -> bool:
        return hash(_viewer(record)) % ALL < ALL * self._share

    def _show(self, exposure: Exposure) -> None:
        if exposure.ts_ms < self._joined_ms or not self._outcomes or not self._counts(exposure):
            self._add("", "", left_out=1)
            return
        nothing = dict.fromkeys(("place_before", "propensity", "draw", "numeric", "category"))
        bare = replace(exposure, context={}, stated={}, rules=[], **nothing)
        times_ms = [dict.fromkeys(bare.candidates, bare.ts_ms), *({} for _ in range(self._by_client))]
        amounts: dict[str, dict[str, float]] = {name: {} for name in self._outcomes}
        # EXPOSURE_BYTES includes one outcome with its tables.
        entries = (
            len(times_ms[0]) + len(amounts) + len(self._stays) + len(bare.weights) + len(bare.pinned) - 1
        )
        num_bytes = EXPOSURE_BYTES + ENTRY_BYTES * entries + len(bare.predictions or b"")
        num_bytes += sum(map(len, times_ms[0]))
        self._num_bytes += num_bytes
        shown = _Shown(bare, times_ms, amounts, {name: {} for name in self._stays}, num_bytes)
        for waiting in (self._shown_to[_viewer(bare)], *self._open.values()):
            waiting[bare.request_id] = shown

    def _happen(self, event: Event) -> None:
        if event.request_id in self._shown or self._counts(event):
            heapq.heappush(self._events, (event.ts_ms or 0, event.kind != IMPRESSION, event.id, event))
            self._num_bytes += EVENT_BYTES

    def _halve(self) -> None:
        """Count half as many viewers, and drop what waits of the others."""
        self._share /= 2
        for shown in [shown for shown in self._shown.values() if not self._counts(shown.exposure)]:
            self._forget(shown)
            self._add("", "", left_out=1)
        kept = [each for each in self._events if each[3].request_id in self._shown or self._counts(each[3])]
        self._num_bytes -= EVENT_BYTES * (len(self._events) - len(kept))
        heapq.heapify(kept)
        self._events = kept

    def _forget(self, shown: _Shown) -> None:
        request, viewer = shown.exposure.request_id, _viewer(shown.exposure)
        for waiting in (self._shown_to[viewer], *self._open.values()):
            waiting.pop(request, None)
        if not self._shown_to[viewer]:
            del self._shown_to[viewer]
        self._num_bytes -= shown.num_bytes

    def _join(self, ts_ms: int, is_outcome: bool, _: str, event: Event) -> None:
        """Join an event to its request's exposure, or to the latest one that fits."""
        self._num_bytes -= EVENT_BYTES
        name, request, joined_ms = event.candidate, event.request_id, None
        mine = self._shown_to.get(_viewer(event), {})
        self._end_stays(event, ts_ms, mine)
        named = [self._shown[request]] if request in self._shown else []
        for shown in islice(reversed(mine.values()), RECENT) if request is None else named:
            # As in training, an event is never before its request, because a client's clock may be
            # behind.
            at_ms = max(ts_ms, shown.exposure.ts_ms) if named else ts_ms
            age_ms = at_ms - shown.times_ms[-1 if is_outcome else 0].get(name, at_ms + 1)
            if age_ms >= 0:
                joined_ms = age_ms
                if is_outcome:
                    self._count(shown, event, at_ms, age_ms)
                elif age_ms <= self._seen_within_ms:
                    self._note(shown, shown.times_ms[-1], name, at_ms)
                break
        # Shortly after more viewers began to count, the ranking of an event may not have been
        # counted. If no ranking of the viewer waits, it may also have been test traffic.
        primary = self._outcomes.get(self._primary)
        if primary and event.kind == primary.event and ts_ms - self._grown_ms >= self._span_ms:
            is_joined = joined_ms is not None and joined_ms <= primary.within_ms
            known = bool(mine or is_joined)
            self._add(
                "", "", label_events=known, unjoined_events=known > is_joined, unknown_viewers=not known
            )

    def _note(self, shown: _Shown, table: dict[str, Any], name: str, value: float) -> None:
        if name not in table:
            shown.num_bytes += ENTRY_BYTES + len(name)
            self._num_bytes += ENTRY_BYTES + len(name)
        table[name] = value

    def _count(self, shown: _Shown, event: Event, at_ms: int, age_ms: int) -> None:
        """Add an event's amount to each outcome whose event it is; an event may begin a stay."""
        for of, outcome in self._outcomes.items():
            if event.kind != outcome.event or age_ms > outcome.within_ms:
                continue
            if outcome.until:
                self._note(shown, shown.begun_ms[of], event.candidate, at_ms)
            else:
                value = np.nan if event.value is None else event.value
                self._raise(shown, of, event.candidate, value if outcome.sum else 1.0)

    def _end_stays(self, event: Event, ts_ms: int, mine: dict[str, _Shown]) -> None:
        """End a viewer's stays at a candidate; a stay that begins again has no known length."""
        for of, outcome in self._stays.items():
            if event.kind not in (outcome.event, outcome.until):
                continue
            for shown in islice(reversed(mine.values()), RECENT):
                begun_ms = shown.begun_ms[of].get(event.candidate, ENDED)
                if begun_ms != ENDED:
                    shown.begun_ms[of][event.candidate] = ENDED
                    minutes = (ts_ms - begun_ms) / UNITS_MS["m"]
                    self._raise(
                        shown, of, event.candidate, minutes if event.kind == outcome.until else np.nan
                    )

    def _raise(self, shown: _Shown, outcome: str, name: str, amount: float) -> None:
        # An unknown amount is NaN, and stays NaN.
        before = shown.amounts[outcome].get(name, 0.0)
        self._note(shown, shown.amounts[outcome], name, before + max(amount, 0.0))

    def _close(self, outcome: str, shown: _Shown) -> None:
        """Count an exposure for an outcome, and drop it once it has counted for all of them."""
        exposure, amounts, seen_ms = shown.exposure, shown.amounts[outcome], shown.times_ms[-1]
        names, key = exposure.candidates, (exposure.arm, exposure.model or "", outcome)
        # At most the cap counts, for each event and for their sum. NaN is an unknown amount.
        amount = np.minimum([amounts.get(name, 0.0) for name in names], self._outcomes[outcome].scale)
        seen = np.array([name in seen_ms for name in names])
        known = seen & ~np.isnan(amount)
        if begun_ms := shown.begun_ms.get(outcome):
            known &= [begun_ms.get(name, ENDED) == ENDED for name in names]
        self._add(*key, candidates=known.sum(), labels=amount[known].sum())
        score = np.frombuffer(exposure.scores, np.float32)
        scored = score[seen & ~np.isnan(score)]
        version = self._version(key[1]) if len(scored) else None
        if version is not None and outcome in version.theta:
            self._compare(key, version, exposure, amount, known)
        if self._open[outcome] is not self._shown:
            del self._open[outcome][exposure.request_id]
            return
        self._forget(shown)
        self._add(*key[:2], unreadable=version is None and len(scored) > 0)
        if version is not None:
            self._add(*key[:2], scored_rankings=1)
            counts = cell_counts(version.cells, scored).tolist() if version.cells else ()
            for cell, served in enumerate(counts):
                self._add(*key[:2], cell=str(cell), served_scores=served)

    def _compare(
        self, key: tuple[str, str, str], version: _Version, exposure: Exposure, amount: F64, known: Bools
    ) -> None:
        """Compare the known amounts `[C]` of an outcome with what was expected."""
        column = list(version.theta).index(key[2])
        predicted = predictions(exposure.scores, exposure.predictions, exposure.weights)[:, column]
        # People chose the places of pins for reasons that no model knows, so leave pins out.
        at = np.setdiff1d(np.flatnonzero(known & ~np.isnan(predicted)), exposure.pinned)
        predicted, amount, theta = predicted[at], amount[at], version.theta[key[2]]
        num, expected = amount.sum(), float(predicted @ theta[np.minimum(at, len(theta) - 1)])
        self._add(*key, scored_labels=num, expected_labels=expected, squared_error=(num - expected) ** 2)
        happened = amount > 0
        if 0 < happened.sum() < len(at):
            above = predicted[happened][:, None] - predicted[~happened]
            self._add(*key, auc=((above > 0) + (above == 0) / 2).mean(), auc_rankings=1)

    def _version(self, model: str) -> _Version | None:
        """Return what an artifact states, or None if it cannot be read."""
        if model not in self._versions and self._joined_ms >= self._retry_ms.get(model, 0):
            self._retry_ms[model] = self._joined_ms + RETRY_MS
            try:
                artifact = load(self._models / model)
                evaluation = json_value(artifact.read("evaluation.json"), "evaluation.json")
                outcomes = artifact.manifest["outcomes"].items()
                theta = {name: np.array(about["examination"]["theta"]) for name, about in outcomes}
                self._versions[model] = _Version(theta, evaluation.get("statistics", {}).get("score"))
            except TabrankError as error:
                log.warning("live quality: a version's scores are not measured: %s", error)
        return self._versions.get(model)


def _viewer(record: Exposure | Event) -> str:
    """Return the viewer; a request without a viewer counts as a viewer of its own."""
    return record.viewer or record.request_id or ""
