"""The dataset: a log's shown candidates as rows with features and labels, point in time.

Features are `serve.features`, computed on the state as it was strictly before each exposure. Shapes: N rows,
F numeric and K category columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.errors import TabrankError
from serve.features import Columns, Features, Matrix
from serve.kinds import IMPRESSION
from serve.log import Log, concat_logs
from serve.replay import Codes, Replay
from serve.state import I64, Schema

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Dataset:
    """Rows in time order; `slate` numbers the exposure that a row was part of, `request_id` names it."""

    columns: Columns
    matrix: Matrix
    label: NDArray[np.float32]  # [N], 0 or 1
    slate: I64  # [N], into `request_ids`
    candidate: list[str]  # [N]
    ts_ms: I64  # [N]
    popular: NDArray[np.float32]  # [N], what the heuristic sorts by; it is one of the numeric columns
    position: I64  # [N], where it was shown in its slate, from 0; never a feature
    viewer_seen: I64  # [N], the viewer's exposures before this one; 0 for a cold viewer and for nobody
    candidate_seen: I64  # [N], exposures that showed the candidate before this one
    request_ids: list[str]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: I64) -> Dataset:
        """The rows of these numbers."""
        matrix = Matrix(self.matrix.numeric[rows], self.matrix.category[rows])
        return Dataset(
            self.columns,
            matrix,
            self.label[rows],
            self.slate[rows],
            [self.candidate[i] for i in rows],
            self.ts_ms[rows],
            self.popular[rows],
            self.position[rows],
            self.viewer_seen[rows],
            self.candidate_seen[rows],
            self.request_ids,
            self.counts,
        )


def build(
    schema: Schema, log: Log, *, history: Log | None = None, progress: Progress = lambda share: None
) -> Dataset:
    """The dataset of `log`; the state starts from `history` where there is one.

    Raises:
        TabrankError: if no row has a closed label window.
    """
    features = Features(schema)
    skipped = len(history.exposures) if history else 0
    whole = concat_logs([history, log]) if history else log
    replay = Replay(schema, whole)
    label, is_row, counts = _labels(replay, whole, schema)
    is_row[: replay.first[skipped]] = False
    exposures = np.arange(skipped, len(whole.exposures))
    exposures = exposures[np.argsort(replay.exposure_ms[exposures], kind="stable")]
    contexts = whole.exposures["context"].to_pylist()
    numeric = np.empty((int(is_row.sum()), len(features.columns.numeric)), np.float32)
    category = np.empty((len(numeric), features.columns.num_category), np.uint64)
    rows = np.empty(len(numeric), np.int64)  # which shown candidate each row is
    at = done = 0
    for group in np.split(exposures, np.flatnonzero(np.diff(replay.exposure_ms[exposures])) + 1):
        done += len(group)
        shown = [np.arange(replay.first[i], replay.first[i + 1]) for i in group]
        taken = [part[is_row[part]] for part in shown]
        pairs = np.concatenate(taken)
        if not len(pairs):
            continue
        replay.advance(int(replay.exposure_ms[group[0]]))
        matrix = features.compute(
            replay.state.viewers.table[replay.exposure_viewer[group]],
            replay.state.candidates.table[replay.candidate_rows(pairs)],
            schema.context_rows([contexts[i] or {} for i in group]),
            np.repeat(np.arange(len(group)), [len(part) for part in taken]),
            replay.exposure_ms[group],
        )
        part = slice(at, at + len(pairs))
        numeric[part], category[part], rows[part] = matrix.numeric, matrix.category, pairs
        at += len(pairs)
        progress(done / len(exposures))
    if not len(rows):
        raise TabrankError(
            f"no row of the log has a closed label window of {schema.surface.label.within_ms / 1000:g} s; "
            "give a longer log or a shorter label.within"
        )
    exposure = np.searchsorted(replay.first, rows, "right") - 1
    ids = pc.list_flatten(whole.exposures["candidates"]).take(rows).to_pylist()
    return Dataset(
        columns=features.columns,
        matrix=Matrix(numeric, category),
        label=label[rows].astype(np.float32),
        slate=exposure - skipped,
        candidate=ids,
        ts_ms=replay.exposure_ms[exposure],
        popular=numeric[:, features.popular],
        position=rows - replay.first[exposure],
        viewer_seen=np.where(
            replay.exposure_viewer > 0, _earlier(replay.exposure_viewer, replay.exposure_ms), 0
        )[exposure],
        candidate_seen=_earlier(replay.shown, np.repeat(replay.exposure_ms, np.diff(replay.first)))[rows],
        request_ids=log.exposures["request_id"].to_pylist(),
        counts=counts | {"rows": len(rows), "positive": int(label[rows].sum())},
    )


def _labels(
    replay: Replay, log: Log, schema: Schema
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, int]]:
    """For each shown candidate: was it followed by the label event, and is it a row at all."""
    surface = schema.surface
    lengths = np.diff(replay.first)
    shown_ms = np.repeat(replay.exposure_ms, lengths)
    joined, unmatched = _joined(replay, log, surface.label.event, surface.label.within_ms)
    is_open = shown_ms + surface.label.within_ms > log.ends_ms
    is_row = ~is_open
    if surface.impression_events:
        seen, _ = _joined(replay, log, IMPRESSION, surface.label.within_ms)
        is_row &= seen
    counts = {"open_rows": int(is_open.sum()), "unmatched_label_events": unmatched}
    return joined, is_row, counts


def _joined(replay: Replay, log: Log, kind: str, within_ms: int) -> tuple[NDArray[np.bool_], int]:
    """Which shown candidates an event of this kind follows within the window, and how many events fit none.

    An event with a `request_id` belongs to that exposure; one without belongs to the viewer's latest exposure
    of that candidate.
    """
    is_kind = np.flatnonzero(replay.event_kind == kind)
    event_ms, candidate = replay.event_ms[is_kind], replay.event_candidate[is_kind]
    lengths = np.diff(replay.first)
    num_candidates = int(max(replay.shown.max(initial=0), candidate.max(initial=0))) + 1
    exposure = np.repeat(np.arange(len(lengths)), lengths)
    shown_ms = replay.exposure_ms[exposure]
    requests = Codes(log.exposures["request_id"], log.events["request_id"])
    exposure_request, event_request = requests.columns
    event_request = event_request[is_kind]
    named = event_request > 0
    joined = np.zeros(len(exposure), bool)
    unmatched = 0
    by_request = exposure_request[exposure] * num_candidates + replay.shown
    by_viewer = replay.exposure_viewer[exposure] * num_candidates + replay.shown
    anonymous = replay.exposure_viewer[exposure] == 0
    for row_key, event_key, chosen in (
        (by_request, event_request * num_candidates + candidate, named),
        (
            np.where(anonymous, -1, by_viewer),
            replay.event_viewer[is_kind] * num_candidates + candidate,
            ~named,
        ),
    ):
        order = np.lexsort((shown_ms, row_key))
        keys, times = row_key[order], shown_ms[order]
        at = _last(keys, times, event_key[chosen], event_ms[chosen])
        fits = (at >= 0) & (keys[at] == event_key[chosen])
        fits &= event_ms[chosen] <= times[at] + within_ms
        joined[order[at[fits]]] = True
        unmatched += int((~fits).sum())
    return joined, unmatched


def _earlier(keys: I64, times: I64) -> I64:
    """For each (key, time): how many others of that key lie strictly before it."""
    order = np.lexsort((times, keys))
    changes = np.diff(keys[order], prepend=-1) != 0
    starts = np.maximum.accumulate(np.where(changes, np.arange(len(keys)), 0))
    anew = changes | (np.diff(times[order], prepend=-1) != 0)  # ties count from the first of their time
    firsts = np.maximum.accumulate(np.where(anew, np.arange(len(keys)), 0))
    earlier = np.empty(len(keys), np.int64)
    earlier[order] = firsts - starts
    return earlier


def _last(keys: I64, times: I64, key: I64, time: I64) -> I64:
    """For each (key, time): the last position in the sorted (keys, times) that is not after it, or −1."""
    everything = np.concatenate([keys, key])
    stamps = np.concatenate([times, time])
    is_query = np.repeat([0, 1], [len(keys), len(key)])  # at equal times the exposure comes first
    order = np.lexsort((is_query, stamps, everything))
    before = np.cumsum(is_query[order] == 0) - 1
    position = np.empty(len(everything), np.int64)
    position[order] = before
    return position[len(keys) :]
