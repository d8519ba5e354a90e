"""Dataset: the candidates of a log's exposures as rows with features and labels, point in time.

Features are those of `serve.features.matrix`, computed on the state strictly before each exposure.
Shapes: N rows, F numeric and K category columns, O predicted outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from serve.features.baseline import Baseline
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import EVER_MS, Schema
from serve.features.slots import F64, I64, Bools, PackedRows
from serve.log.reader import Log, concat_logs
from serve.log.replay import Replay
from training.data.labels import label
from training.data.scratch import ROWS_AT_ONCE, empty, taken
from training.terminal import print_progress

Progress = Callable[[float], None]
# Log weights of drawn exposures, each [C], by their row in the log.
Weights = Mapping[int, F64]


@dataclass(frozen=True)
class Dataset:
    """Rows in time order; `slate` is the number of a row's exposure in `request_ids`.

    An exposure that stands for several, because the others were not kept, is there as often, each
    time as a slate of its own with the same rows and viewer. So every loss, mean and curve of the
    rows is one of all exposures, and errors by viewer do not count a copy as something new.
    """

    columns: Columns
    matrix: Matrix
    # [N, O], the amount of each outcome as a share of its cap, 0 or 1 of an event; NaN if unknown.
    outcomes: NDArray[np.float32]
    # [N], index into `request_ids`
    slate: I64
    # [N], number of the viewer; an exposure without a viewer has a number of its own, below 0.
    viewer: I64
    # [N], index into `candidate_ids`
    shown: I64
    # [N]
    ts_ms: I64
    # [N], the value by which the popular heuristic sorts; also one of the numeric columns.
    popular: NDArray[np.float32]
    # [N], position in the slate, from 0; never a feature.
    position: I64
    # [N], the viewer's exposures before this one; 0 for a cold viewer or none.
    viewer_seen: I64
    # [N], exposures that showed the candidate before this one.
    candidate_seen: I64
    request_ids: Sequence[str]
    candidate_ids: Sequence[str | None]
    # The surface's rule, if it has one.
    rule: Baseline | None = None
    # [N], the log weight with which the row's place was drawn; −inf for candidates that were not
    # drawn. NaN for slates without a draw, or with a candidate that is not a row, unless it was
    # unknown and not drawn. None: no draw.
    weight: F64 | None = None
    # [N], the arm to which the viewer was assigned at random, the largest 0; −1 outside of the
    # experiment. None: no experiment.
    arm: I64 | None = None
    # [N], whether the request chose the row's place; None: no request of the log did.
    pinned: Bools | None = None
    # [N], the fields that were asked for, as a record for each owner. None: none were.
    fields: PackedRows | None = None

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def label(self) -> NDArray[np.float32]:
        """The share of the only outcome, `[N]`; of several, `of` returns a dataset of one."""
        assert self.outcomes.shape[1] == 1
        return self.outcomes[:, 0]

    def of(self, outcome: int) -> Dataset:
        """Return the rows at which the outcome of this number is known, with that outcome alone."""
        known = ~np.isnan(self.outcomes[:, outcome])
        rows = self if known.all() else self.take(np.flatnonzero(known))
        weight = None
        if self.weight is not None:
            # A draw is known only with all its candidates.
            cut = self.slate[~known & ~np.isneginf(self.weight)]
            weight = np.where(np.isin(self.slate, cut), np.nan, self.weight)[known]
        return replace(rows, outcomes=rows.outcomes[:, outcome : outcome + 1], weight=weight)

    def unpinned(self) -> Dataset:
        """Return the rows whose places the ranking chose, which alone tell of it.

        Raises:
            TabrankError: there are rows, and requests pinned them all.
        """
        if self.pinned is None:
            return self
        if len(self) and self.pinned.all():
            raise TabrankError(
                f"requests pinned all {len(self):,} rows, so that none tells how a ranking orders; "
                "give a log with candidates that were not pinned"
            )
        return replace(self.take(np.flatnonzero(~self.pinned)), pinned=None)

    @property
    def rules(self) -> dict[str, NDArray[np.floating]]:
        """Values `[N]` by which `popular` and, where the surface has one, `baseline` sort."""
        if self.rule is None:
            return {"popular": self.popular}
        baseline = self.rule.worth(self.columns.numeric, self.matrix.numeric)
        return {"popular": self.popular, "baseline": baseline}

    def take(self, rows: I64 | Bools | slice) -> Dataset:
        """Return the rows of these numbers, or of a mask; rows of a slice are a view."""

        def of(array: NDArray[Any]) -> NDArray[Any]:
            return array[rows] if isinstance(rows, slice) else taken(array, rows)

        arrays: dict[str, Any] = {name: of(array) for name, array in self.arrays().items()}
        return replace(self, matrix=Matrix(of(self.matrix.numeric), of(self.matrix.category)), **arrays)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays [N] by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def sample(data: Dataset, most: int, among: NDArray[np.bool_] | None = None) -> Dataset:
    """Return about `most` rows at most: whole slates, evenly spread over time.

    With `among` `[N]`, they are slates that have such a row.
    """
    if among is None and len(data) <= most:
        return data
    slates = np.unique(data.slate if among is None else data.slate[among])
    num_rows = int(np.isin(data.slate, slates).sum())
    kept = slates[evenly(len(slates), max(1, len(slates) * most // max(num_rows, 1)))]
    return data.take(np.flatnonzero(np.isin(data.slate, kept)))


def evenly(num_rows: int, most: int) -> I64:
    """Return at most `most` row numbers, evenly spaced from the first to the last."""
    return np.linspace(0, num_rows - 1, min(most, num_rows)).astype(np.int64)


def kept_evenly(num_shown: I64, most: int, among: I64 | None = None) -> Bools:
    """Return which exposures `[N]`, evenly spaced, show about `most` candidates in all.

    `num_shown` `[N]` counts the candidates of each. They are some of `among`, or of all.
    """
    among = np.arange(len(num_shown)) if among is None else among
    num = len(among) * most // max(1, int(num_shown[among].sum()))
    return np.isin(np.arange(len(num_shown)), among[evenly(len(among), num)])


def build(
    schema: Schema,
    log: Log,
    *,
    history: Log | None = None,
    weights: Weights | None = None,
    kept: Bools | None = None,
    progress: Progress = lambda share: None,
) -> Dataset:
    """Build the dataset of `log`; the state starts from `history` if given.

    `weights` and `kept` are those of `DatasetPlan`.

    Raises:
        TabrankError: if the primary outcome of no row is known.
    """
    return DatasetPlan(schema, log, history=history, weights=weights, kept=kept).whole(progress)


class DatasetPlan:
    """Rows of a log, known before any feature is computed, and then built part by part.

    Holds about 40 bytes for each row beside the log, and about 140 while it is created. `weights`
    are those of `training.data.draws.drawn_weights`, `arms` those of `served_arms`. With
    `newest_ms`, only candidates of so many ms up to the last row are rows, and with `kept`
    `[exposures of the log]` only those of some exposures; the other records still build the state.
    `fields`, such as candidate.host, and candidate.ends_ms, are those that the rows keep.

    Raises:
        TabrankError: if the primary outcome of no row is known, or all are of unknown candidates.
    """

    def __init__(
        self,
        schema: Schema,
        log: Log,
        *,
        history: Log | None = None,
        weights: Weights | None = None,
        newest_ms: float = np.inf,
        arms: I64 | None = None,
        kept: Bools | None = None,
        fields: Sequence[str] = (),
    ) -> None:
        self._fields = _layout(schema, fields)
        self._features = Features(schema)
        self._arms = arms
        self._skipped = len(history.exposures) if history else 0
        whole = concat_logs([history, log]) if history else log
        self._contexts = whole.exposures["context"].combine_chunks()
        self._replay = replay = Replay(schema, whole)
        self._outcomes = label(replay, whole, schema.surface)
        self._is_row = np.asarray(~np.isnan(self._outcomes).all(axis=1), np.bool_)
        self._is_row[: replay.first[self._skipped]] = False
        if kept is not None:
            lengths = np.diff(replay.first)[self._skipped :]
            self._is_row[replay.first[self._skipped] :] &= np.repeat(kept, lengths)
        self._is_row[np.repeat(replay.before_snapshot, np.diff(replay.first))] = False
        shown_ms = np.repeat(replay.exposure_ms, np.diff(replay.first))
        self._is_row &= shown_ms >= shown_ms[self._is_row].max(initial=EVER_MS) - newest_ms
        exposures = np.arange(self._skipped, len(whole.exposures))
        self._exposures = exposures[np.argsort(replay.exposure_ms[exposures], kind="stable")]
        # Replicas of a service may see more or less of the log at one time, so make `sees`
        # monotone: the state only moves forward.
        self._sees = np.maximum.accumulate(replay.sees[self._exposures])
        unknown = np.zeros(len(replay.shown), bool)
        # A service gives them no score.
        if schema.surface.unknown_candidates == "last":
            unknown = self._is_row & replay.unknown()
        self._is_row &= ~unknown
        num_unknown = int(unknown.sum())
        self._weight = np.full(len(replay.shown), np.nan) if weights else None
        for i, weight in (weights or {}).items():
            shown = slice(*replay.first[i + self._skipped : i + self._skipped + 2])
            is_whole = (self._is_row[shown] | (unknown[shown] & np.isneginf(weight))).all()
            if self._weight is not None and is_whole:
                self._weight[shown] = weight
        pinned = whole.exposures["pinned"].combine_chunks()
        places = replay.first[pc.list_parent_indices(pinned).to_numpy()] + pc.list_flatten(pinned).to_numpy()
        self._pinned = np.isin(np.arange(len(replay.shown)), places) if len(places) else None
        rows_before = np.concatenate([[0], np.cumsum(self._is_row)])[replay.first]
        self._num_rows = np.diff(rows_before)[self._exposures]
        # How many slates each exposure stands for.
        self._times: I64 = whole.exposures["one_in"].to_numpy()
        self.columns = self._features.columns
        # [N], the time of each row.
        num_rows = self._num_rows * self._times[self._exposures]
        self.ts_ms: I64 = np.repeat(replay.exposure_ms[self._exposures], num_rows)
        if num_unknown:
            share = num_unknown / (num_unknown + len(self))
            print_progress(
                f"left out {num_unknown} rows ({share:.1%}) of candidates that were unknown when they were shown: "
                'no record of them came before, and the surface has unknown_candidates = "last"'
            )
        if np.isnan(self._outcomes[self._is_row, 0]).all():
            name = next(iter(schema.surface.predicted))
            window = spelled(schema.surface.primary.within_ms / 1000)
            raise TabrankError(
                "every shown candidate was unknown when it was shown; write the candidates to the log with times "
                'before the rankings, or set unknown_candidates = "scored" in the surface'
                if num_unknown and not len(self)
                else f"the outcome {name!r} of no row is known: the log is shorter than its window of {window}; "
                "give a longer log or a shorter within"
            )
        viewers = replay.exposure_viewer
        self._viewer_seen = np.where(viewers > 0, _earlier(viewers, replay.exposure_ms), 0)
        self._candidate_seen = _earlier(replay.shown, shown_ms).astype(np.int32)
        slates = np.repeat(np.arange(len(log.exposures)), self._times[self._skipped :])
        # Of each slate.
        self.request_ids: list[str] = log.exposures["request_id"].take(slates).to_pylist()

    def __len__(self) -> int:
        return len(self.ts_ms)

    def whole(self, progress: Progress = lambda share: None) -> Dataset:
        """Return all rows in time order, once; large arrays are in files."""

        def blank(array: NDArray[Any]) -> NDArray[Any]:
            return empty((len(self), *array.shape[1:]), array.dtype)

        at, whole = 0, None
        for part in self.parts(ROWS_AT_ONCE, progress):
            if whole is None:
                arrays: dict[str, Any] = {name: blank(array) for name, array in part.arrays().items()}
                matrix = Matrix(blank(part.matrix.numeric), blank(part.matrix.category))
                whole = replace(part, matrix=matrix, **arrays)
            rows = whole.take(slice(at, at + len(part)))
            rows.matrix.numeric[:], rows.matrix.category[:] = part.matrix.numeric, part.matrix.category
            for name, array in part.arrays().items():
                getattr(rows, name)[:] = array
            at += len(part)
        assert whole is not None
        return whole

    def parts(self, rows: int, progress: Progress = lambda share: None) -> Iterator[Dataset]:
        """Yield the rows in time order, once, in parts of at least `rows` rows.

        A part ends with the last row of the moment that fills it. An exposure that stands for
        several counts once.
        """
        times, sees = self._replay.exposure_ms[self._exposures], self._sees
        starts = np.concatenate([[0], np.flatnonzero(np.diff(times) | np.diff(sees)) + 1])
        before = np.concatenate([[0], np.cumsum(self._num_rows)])[starts]
        moments = list(zip(sees[starts].tolist(), np.split(self._exposures, starts[1:]), strict=True))
        cuts = np.flatnonzero(np.diff(before // rows)) + 1
        done = 0
        for begin, end in zip([0, *cuts], [*cuts, len(moments)], strict=True):
            size = int((before[end] if end < len(moments) else self._num_rows.sum()) - before[begin])
            if size:
                yield self._repeated(self._part(moments[begin:end], size, progress, done))
            done += size

    def _repeated(self, part: Dataset) -> Dataset:
        """Return the rows of each exposure as often as it stands for one, each time a new slate."""
        times = self._times[self._skipped :]
        if times.max() == 1:
            return part
        starts = np.flatnonzero(np.diff(part.slate, prepend=-1))
        exposure, lengths = part.slate[starts], np.diff(starts, append=len(part))
        # Of each copy of an exposure.
        copied = np.repeat(np.arange(len(starts)), times[exposure])
        number = np.arange(len(copied)) - np.repeat(
            np.cumsum(times[exposure]) - times[exposure], times[exposure]
        )
        slate = (np.cumsum(times) - times)[exposure[copied]] + number
        lengths = lengths[copied]
        rows = np.repeat(starts[copied] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        return replace(part.take(rows), slate=np.repeat(slate, lengths))

    def _part(self, moments: Sequence[tuple[int, I64]], size: int, progress: Progress, done: int) -> Dataset:
        replay, columns = self._replay, self.columns
        numeric = np.empty((size, len(columns.numeric)), np.float32)
        category = np.empty((size, columns.num_category), np.uint64)
        fields = np.empty(size, self._fields)
        # Index of the shown candidate of each row.
        rows = np.empty(size, np.int64)
        at = 0
        for sees, exposures in moments:
            parts = (slice(replay.first[i], replay.first[i + 1]) for i in exposures)
            taken = [part.start + np.flatnonzero(self._is_row[part]) for part in parts]
            pairs = np.concatenate(taken)
            if not len(pairs):
                continue
            replay.advance_to(sees)
            lengths = [len(part) for part in taken]
            matrix, owners = _compute(self._features, replay, self._contexts, exposures, pairs, lengths)
            part = slice(at, at + len(pairs))
            for owner in self._fields.names or ():
                held = owners[owner][[*(self._fields[owner].names or ())]]
                fields[owner][part] = held if owner == "candidate" else np.repeat(held, lengths)
            numeric[part], category[part], rows[part] = matrix.numeric, matrix.category, pairs
            at += len(pairs)
            progress((done + at) / self._num_rows.sum())
        exposure = np.searchsorted(replay.first, rows, "right") - 1
        viewer = replay.exposure_viewer[exposure]
        return Dataset(
            columns=columns,
            matrix=Matrix(numeric, category),
            outcomes=self._outcomes[rows],
            slate=exposure - self._skipped,
            viewer=np.where(viewer > 0, viewer, -1 - exposure),
            shown=replay.shown[rows],
            ts_ms=replay.exposure_ms[exposure],
            popular=numeric[:, self._features.popular],
            position=rows - replay.first[exposure],
            viewer_seen=self._viewer_seen[exposure],
            candidate_seen=self._candidate_seen[rows].astype(np.int64),
            request_ids=self.request_ids,
            candidate_ids=replay.state.candidates.ids,
            rule=self._features.schema.surface.baseline,
            weight=None if self._weight is None else self._weight[rows],
            arm=None if self._arms is None else self._arms[exposure - self._skipped],
            pinned=None if self._pinned is None else self._pinned[rows],
            fields=fields if self._fields.names else None,
        )


def recompute_features(
    features: Features, log: Log, replay: Replay, exposures: I64
) -> Iterator[tuple[int, Matrix]]:
    """Yield (index in the log, features of the candidates as shown) for each of the exposures.

    Exposures come in the order of the state that they saw. The replay only moves forward, so it can
    be used once.
    """
    contexts = log.exposures["context"].combine_chunks()
    for i in exposures[np.argsort(replay.sees[exposures], kind="stable")].tolist():
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        yield i, _compute(features, replay, contexts, np.array([i]), shown, [len(shown)])[0]


def _layout(schema: Schema, fields: Sequence[str]) -> np.dtype[np.void]:
    """Return the layout of fields, such as candidate.host: a record for each owner of one."""
    of_owner: dict[str, list[Any]] = {}
    for owner, _, name in (field.partition(".") for field in dict.fromkeys(fields)):
        of_owner.setdefault(owner, []).append((name, getattr(schema, owner)[name]))
    return np.dtype([*of_owner.items()])


def _compute(
    features: Features, replay: Replay, contexts: pa.Array, exposures: I64, pairs: I64, lengths: list[int]
) -> tuple[Matrix, dict[str, PackedRows]]:
    """Return the features of `pairs` at this state, `lengths` of them for each exposure.

    Also returns the rows of the viewers and contexts of the exposures, and of the candidates.
    """
    viewers = replay.state.viewers.table[replay.exposure_viewer[exposures]]
    candidates = replay.candidates(pairs)
    context = features.schema.context_rows([contexts[int(i)].as_py() or {} for i in exposures])
    matrix = features.compute(
        viewers,
        candidates,
        context,
        np.repeat(np.arange(len(exposures)), lengths),
        replay.exposure_ms[exposures],
        replay.state.candidates.values_of(replay.candidate_rows(pairs)),
    )
    return matrix, {"viewer": viewers, "candidate": candidates, "context": context}


def _earlier(keys: I64, times: I64) -> I64:
    """Count, for each (key, time), the other entries of that key at a strictly earlier time."""
    first = pd.Series(times).groupby(keys).rank(method="min")
    return first.to_numpy().astype(np.int64) - 1
