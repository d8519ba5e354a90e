"""Live quality: label events joined to the scores that viewers were served, as they come."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from serve.contract.records import Event
from serve.contract.validation import json_value
from serve.features.slots import F64, IMPRESSION
from serve.features.surface import Surface
from serve.log.events import Exposure, Record
from serve.model.artifact import load
from serve.rollout.score_comparison import cell_counts

# Join an event this long after its own time, in the order of these times: exposures, impressions
# and labels come in separate calls. An exposure that comes later than this is left out.
GRACE_MS = 60_000
# Limit the memory of what waits: the fuller its second half, the fewer viewers count. 64 MiB are
# 10,000 rankings of 55 candidates.
MAX_BYTES = 64 << 20
# Share of it that is filled at once.
LEAST = 1 / 64
# Count the viewers with a hash below a share of this.
ALL = 1 << 16
# Memory of an exposure without candidates, of a candidate without the characters of its id, and of
# an event: at least what they take.
EXPOSURE_BYTES, CANDIDATE_BYTES, EVENT_BYTES = 2_048, 72, 1_024
# An event without a request belongs to one of its viewer's last exposures, of this many.
RECENT = 100

# By the labels of `metric_catalog.QUALITY`: arm, version, measure, cell of the scores.
Sums = Mapping[tuple[str, str, str, str], float]


class _Shown(NamedTuple):
    """Exposure that waits, and the times of impressions and of label events, by candidate."""

    exposure: Exposure
    num_bytes: int
    seen_ms: dict[str, int]
    label_ms: dict[str, int]


class LiveQuality:
    """Sums of the labels that served scores promised and of those that came.

    An exposure counts once its label window has closed, so that all sums are of the same
    candidates; a restart loses those that wait. A label belongs to a candidate as in training
    (`training.data.labels`). Its expectation is the score times the examination of the position.
    Artifacts are read from the folder `models`; without a readable one nothing is expected. Of one
    viewer all exposures count or none, as long as the room left is the same.
    """

    def __init__(self, surface: Surface, models: Path, max_bytes: int = MAX_BYTES) -> None:
        self._by_client, self._label = surface.impression_events, surface.label
        self._kinds = (surface.label.event, IMPRESSION)
        # Labels come within a window after an impression, and that within one after the exposure.
        self._span_ms = surface.label.within_ms * (1 + self._by_client)
        self._models, self._max_bytes, self._num_bytes, self._limit = models, max_bytes, 0, 0.0
        # Examination by position and cells of the training scores; None if they cannot be read.
        self._versions: dict[str, tuple[F64, Any] | None] = {"": None}
        # When it began, and up to when events are joined.
        self._begun_ms = self._joined_ms = 0
        # Heap of events by time; ids break ties.
        self._events: list[tuple[int, str, Event]] = []
        # Exposures, oldest first, by request; and the requests of each viewer.
        self._shown: dict[str, _Shown] = {}
        self._requests: defaultdict[str | None, list[str]] = defaultdict(list)
        self._sums: defaultdict[tuple[str, str, str, str], float] = defaultdict(float)

    def add(self, records: Iterable[Record], now_ms: int) -> None:
        """Take committed records at `now_ms` of the service's clock, and count what has closed."""
        self._begun_ms = self._begun_ms or now_ms
        since_ms = next((shown.exposure.ts_ms for shown in self._shown.values()), now_ms)
        # Fill the memory over the whole label window, so that rankings of all times count.
        age = (now_ms - since_ms) / (self._span_ms + GRACE_MS)
        self._limit = self._max_bytes * min(max(age, LEAST), 1.0)
        for record in records:
            if isinstance(record, Exposure):
                self._show(record)
            elif isinstance(record, Event) and record.kind in self._kinds and self._counts(record):
                heapq.heappush(self._events, (record.ts_ms or 0, record.id, record))
                self._num_bytes += EVENT_BYTES
        self._joined_ms = now_ms - GRACE_MS
        while self._events and self._events[0][0] <= self._joined_ms:
            self._join(*heapq.heappop(self._events))
        while oldest := next(iter(self._shown.values()), None):
            if oldest.exposure.ts_ms > self._joined_ms - self._span_ms:
                break
            self._close(oldest)

    def take(self) -> Sums:
        """Return the sums since the last call."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums

    def _add(self, arm: str, model: str, **sums: float) -> None:
        for measure, value in sums.items():
            self._sums[arm, model, measure, ""] += float(value)

    def _counts(self, record: Exposure | Event) -> bool:
        """Return whether the viewer counts (all do in the first half), or the exposure is held."""
        share = 2 - 2 * self._num_bytes / self._limit
        counts = hash(record.viewer or record.request_id) % ALL < ALL * share
        return (counts or record.request_id in self._shown) and self._num_bytes < self._max_bytes

    def _show(self, exposure: Exposure) -> None:
        if exposure.ts_ms < self._joined_ms or not self._counts(exposure):
            self._add("", "", left_out=1)
            return
        bare = replace(exposure, context={}, stated={}, propensity=None, numeric=None, category=None)
        num_bytes = EXPOSURE_BYTES + sum(CANDIDATE_BYTES + len(name) for name in exposure.candidates)
        self._shown[exposure.request_id] = _Shown(bare, num_bytes, {}, {})
        self._requests[exposure.viewer].append(exposure.request_id)
        self._num_bytes += num_bytes

    def _join(self, ts_ms: int, _: str, event: Event) -> None:
        """Join an event to its request's exposure, or to its viewer's latest of the candidate."""
        self._num_bytes -= EVENT_BYTES
        name, is_label, owner = event.candidate, event.kind == self._label.event, None
        recent = self._requests.get(event.viewer or "", [])[-RECENT:]
        for request in recent[::-1] if event.request_id is None else [event.request_id]:
            shown = self._shown.get(request)
            if shown is None or name not in shown.exposure.candidates:
                continue
            since_ms = shown.seen_ms.get(name) if is_label and self._by_client else shown.exposure.ts_ms
            if since_ms is not None and since_ms <= ts_ms:
                owner = shown if ts_ms - since_ms <= self._label.within_ms else None
                break
        if owner is not None:
            (owner.label_ms if is_label else owner.seen_ms)[name] = ts_ms
        # Soon after the begin, its exposure may be older.
        if is_label and ts_ms - self._begun_ms >= self._span_ms:
            self._add("", "", label_events=1, unjoined_events=owner is None)

    def _close(self, shown: _Shown) -> None:
        """Count an exposure, and hold it no longer."""
        exposure, names = shown.exposure, shown.exposure.candidates
        del self._shown[exposure.request_id]
        self._requests[exposure.viewer].remove(exposure.request_id)
        if not self._requests[exposure.viewer]:
            del self._requests[exposure.viewer]
        self._num_bytes -= shown.num_bytes
        if exposure.traffic == "test":
            return
        key, seen = (exposure.arm, exposure.model or ""), shown.seen_ms if self._by_client else set(names)
        self._add(*key, candidates=len(seen), labels=len(shown.label_ms))
        score, version = np.frombuffer(exposure.scores, np.float32), self._version(key[1])
        at = np.flatnonzero(~np.isnan(score) & [name in seen for name in names])
        if version is None or not len(at):
            return
        score, label = score[at], np.array([names[k] in shown.label_ms for k in at])
        examination, cells = version
        num, expected = label.sum(), float(score @ examination[np.minimum(at, len(examination) - 1)])
        self._add(*key, scored_labels=num, expected_labels=expected, squared_error=(num - expected) ** 2)
        if 0 < num < len(at):
            above = score[label][:, None] - score[~label]
            self._add(*key, auc=((above > 0) + (above == 0) / 2).mean(), auc_rankings=1)
        for cell, served in enumerate(cell_counts(cells, score).tolist() if cells else ()):
            self._sums[*key, "served_scores", str(cell)] += served
            self._sums[*key, "training_scores", str(cell)] += len(score) * cells["shares"][cell]

    def _version(self, model: str) -> tuple[F64, Any] | None:
        """Return what an artifact says; raise TabrankError the first time if it cannot be read."""
        if model not in self._versions:
            self._versions[model] = None
            artifact = load(self._models / model)
            evaluation = json_value(artifact.read("evaluation.json"), f"version {model}: evaluation.json")
            theta = artifact.manifest.get("examination", {}).get("theta", (1.0,))
            self._versions[model] = np.array(theta), evaluation.get("statistics", {}).get("score")
        return self._versions[model]
