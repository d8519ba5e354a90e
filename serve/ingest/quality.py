"""Live quality: label events joined to the scores that viewers were served, as they come."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from serve.contract.errors import TabrankError
from serve.contract.records import Event
from serve.contract.validation import json_value
from serve.features.slots import F64, IMPRESSION
from serve.features.surface import Surface
from serve.log.events import Exposure, Record
from serve.model.artifact import load
from serve.rollout.score_comparison import cell_counts

log = logging.getLogger("tabrank")
# Join an event this long after its own time, in the order of these times: exposures, impressions
# and labels come in separate calls. An exposure that comes later than this is left out.
GRACE_MS = 60_000
# Limit the memory of what waits. 64 MiB are 7,000 rankings of 55 candidates.
MAX_BYTES = 64 << 20
# Count the viewers with a hash below a share of this.
ALL = 1 << 16
# Memory of an exposure, of an event, and of each candidate, impression and label of an exposure
# without the characters of its id: at least what they take.
EXPOSURE_BYTES, EVENT_BYTES, ENTRY_BYTES = 1_536, 1_024, 128
# An event without a request belongs to one of its viewer's last exposures, of this many.
RECENT = 100
# Read an artifact that could not be read again after this time.
RETRY_MS = 60_000

# By the labels of `metric_catalog.QUALITY`: arm, version, measure, cell of the scores.
Sums = Mapping[tuple[str, str, str, str], float]


class _Shown(NamedTuple):
    """Exposure that waits, and the times of exposure, any impression and label, by candidate."""

    exposure: Exposure
    times_ms: list[dict[str, int]]

    def num_bytes(self) -> int:
        return EXPOSURE_BYTES + sum(ENTRY_BYTES + len(name) for times in self.times_ms for name in times)


class LiveQuality:
    """Sums of the labels that served scores promised and of those that came.

    An exposure counts once its label window has closed, so that all sums are of the same
    candidates; a restart loses those that wait. A label belongs to a candidate as in training
    (`training.data.labels`). Its expectation is the score times the examination of the position.
    Artifacts are read from the folder `models`; without a readable one nothing is expected. Of one
    viewer all exposures count or none: half as many viewers count once they exceed `max_bytes`, and
    twice as many once they take less than a quarter of it.
    """

    def __init__(self, surface: Surface, models: Path, max_bytes: int = MAX_BYTES) -> None:
        self._by_client, self._label = surface.impression_events, surface.primary
        # Labels come within a window after an impression, and that within one after the exposure.
        self._span_ms = surface.longest_window_ms * (1 + self._by_client)
        self._models, self._max_bytes, self._num_bytes = models, max_bytes, 0
        # Share of the viewers that count, when it last grew, and up to when events are joined.
        self._share, self._grown_ms, self._joined_ms = 1.0, 0, 0
        # Examination by position and cells of the scores, by version; when to read one again.
        self._versions: dict[str, tuple[F64, Any]] = {}
        self._retry_ms: dict[str, int] = {}
        # Heap of events by time; of the same time labels come last, and ids break ties.
        self._events: list[tuple[int, bool, str, Event]] = []
        # Exposures, oldest first, by request; and those of each viewer.
        self._shown: dict[str, _Shown] = {}
        self._shown_to: defaultdict[str, dict[str, _Shown]] = defaultdict(dict)
        self._sums: defaultdict[tuple[str, str, str, str], float] = defaultdict(float)

    def add(self, records: Iterable[Record], now_ms: int) -> None:
        """Take committed records at `now_ms` of the service's clock, and count what has closed."""
        self._grown_ms = self._grown_ms or now_ms
        for record in records:
            if isinstance(record, Exposure) and record.traffic != "test":
                self._show(record)
            elif isinstance(record, Event) and record.kind in (self._label.event, IMPRESSION):
                self._happen(record)
            while self._num_bytes > self._max_bytes and self._share * ALL > 1:
                self._halve()
        # With the event clock, a commit may be of records that come late.
        self._joined_ms = max(self._joined_ms, now_ms - GRACE_MS)
        while self._events and self._events[0][0] <= self._joined_ms:
            self._join(*heapq.heappop(self._events))
        while oldest := next(iter(self._shown.values()), None):
            if oldest.exposure.ts_ms > self._joined_ms - self._span_ms:
                break
            self._close(oldest)
        is_low = self._share < 1 and self._num_bytes < self._max_bytes / 4
        if is_low and self._joined_ms - self._grown_ms >= self._span_ms:
            self._share, self._grown_ms = self._share * 2, now_ms

    def take(self) -> Sums:
        """Return the sums since the last call."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums

    def _add(self, arm: str, model: str, **sums: float) -> None:
        for measure, value in sums.items():
            self._sums[arm, model, measure, ""] += float(value)

    def _counts(self, record: Exposure | Event) -> bool:
        return hash(_viewer(record)) % ALL < ALL * self._share

    def _show(self, exposure: Exposure) -> None:
        if exposure.ts_ms < self._joined_ms or not self._counts(exposure):
            self._add("", "", left_out=1)
            return
        bare = replace(exposure, context={}, stated={}, propensity=None, numeric=None, category=None)
        times_ms = dict.fromkeys(exposure.candidates, exposure.ts_ms)
        shown = _Shown(bare, [times_ms, *({} for _ in range(1 + self._by_client))])
        self._shown[bare.request_id] = self._shown_to[_viewer(bare)][bare.request_id] = shown
        self._num_bytes += shown.num_bytes()

    def _happen(self, event: Event) -> None:
        if event.request_id in self._shown or self._counts(event):
            heapq.heappush(self._events, (event.ts_ms or 0, event.kind != IMPRESSION, event.id, event))
            self._num_bytes += EVENT_BYTES

    def _halve(self) -> None:
        """Count half as many viewers, and leave out what waits of the others."""
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
        del self._shown[request], self._shown_to[viewer][request]
        if not self._shown_to[viewer]:
            del self._shown_to[viewer]
        self._num_bytes -= shown.num_bytes()

    def _join(self, ts_ms: int, is_label: bool, _: str, event: Event) -> None:
        """Join an event to its request's exposure, or to its viewer's latest of the candidate."""
        self._num_bytes -= EVENT_BYTES
        name, request, is_joined = event.candidate, event.request_id, False
        mine = self._shown_to.get(_viewer(event), {})
        named = [self._shown[request]] if request in self._shown else []
        for shown in islice(reversed(mine.values()), RECENT) if request is None else named:
            # As in training, an event is never before its request: a client's clock may be behind.
            at_ms = max(ts_ms, shown.exposure.ts_ms) if named else ts_ms
            since_ms, times_ms = shown.times_ms[: 2 + is_label][-2:]
            age_ms = at_ms - since_ms.get(name, at_ms + 1)
            if age_ms >= 0:
                if is_joined := age_ms <= self._label.within_ms:
                    self._num_bytes += (ENTRY_BYTES + len(name)) * (name not in times_ms)
                    times_ms[name] = at_ms
                break
        # Soon after viewers began to count, an event's ranking may have been left out. That of a
        # viewer without a ranking that waits may also be of test traffic.
        if is_label and ts_ms - self._grown_ms >= self._span_ms:
            known = bool(mine or is_joined)
            self._add(
                "", "", label_events=known, unjoined_events=known > is_joined, unknown_viewers=not known
            )

    def _close(self, shown: _Shown) -> None:
        """Count an exposure, and hold it no longer."""
        self._forget(shown)
        exposure, (*_, seen_ms, label_ms) = shown
        names, key = exposure.candidates, (exposure.arm, exposure.model or "")
        score = np.frombuffer(exposure.scores, np.float32)
        at = np.flatnonzero(~np.isnan(score) & [name in seen_ms for name in names])
        version = self._version(key[1]) if len(at) else None
        is_unreadable = version is None and len(at) > 0
        self._add(*key, candidates=len(seen_ms), labels=len(label_ms), unreadable=is_unreadable)
        if version is None:
            return
        score, label = score[at], np.array([names[k] in label_ms for k in at])
        examination, cells = version
        num, expected = label.sum(), float(score @ examination[np.minimum(at, len(examination) - 1)])
        self._add(*key, scored_labels=num, expected_labels=expected, squared_error=(num - expected) ** 2)
        self._add(*key, scored_rankings=1)
        if 0 < num < len(at):
            above = score[label][:, None] - score[~label]
            self._add(*key, auc=((above > 0) + (above == 0) / 2).mean(), auc_rankings=1)
        for cell, served in enumerate(cell_counts(cells, score).tolist() if cells else ()):
            self._sums[*key, "served_scores", str(cell)] += served

    def _version(self, model: str) -> tuple[F64, Any] | None:
        """Return what an artifact says, or None if it cannot be read."""
        if model not in self._versions and self._joined_ms >= self._retry_ms.get(model, 0):
            self._retry_ms[model] = self._joined_ms + RETRY_MS
            try:
                artifact = load(self._models / model)
                evaluation = json_value(artifact.read("evaluation.json"), "evaluation.json")
                theta = next(iter(artifact.manifest["outcomes"].values()))["examination"]["theta"]
                self._versions[model] = np.array(theta), evaluation.get("statistics", {}).get("score")
            except TabrankError as error:
                log.warning("live quality: a version's scores are not measured: %s", error)
        return self._versions.get(model)


def _viewer(record: Exposure | Event) -> str:
    """Return the viewer; each request without one has its own."""
    return record.viewer or record.request_id or ""
