"""Dataset: every candidate that a log's exposures showed, as a row with features and labels.

Features are computed by `serve.features.matrix` from the state strictly before each exposure, as
the service does. In shapes, N is the number of rows, F of numeric columns, K of category columns,
O of predicted outcomes, and C of one exposure's candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
from serve.features.surface import Surface
from serve.log.reader import Log, concat_logs
from serve.log.replay import Replay
from training.data.labels import label
from training.data.scratch import empty, taken
from training.terminal import print_progress

Progress = Callable[[float], None]
# The log weights `[C]` with which an exposure's order was drawn, by the exposure's row in the log.
Weights = Mapping[int, F64]


@dataclass(frozen=True)
class Dataset:
    """Rows in the order of time. `slate` says to which exposure in `request_ids` a row belongs.

    A log may keep only one exposure in n (`one_in`). The kept exposure then occurs n times, each
    time as a slate of its own with the same rows and viewer. So losses, means and curves of the
    rows represent all exposures, and standard errors by viewer do not take copies for new evidence.
    """

    columns: Columns
    matrix: Matrix
    # [N, O], the amount of each outcome as a share of its cap (0 or 1 for an event); NaN if
    # unknown.
    outcomes: NDArray[np.float32]
    # [N], index into `request_ids`
    slate: I64
    # [N], number of the viewer; each exposure without a viewer has a negative number of its own.
    viewer: I64
    # [N], index into `candidate_ids`
    shown: I64
    # [N]
    ts_ms: I64
    # [N], the value by which the popular order sorts; it is also one of the numeric columns.
    popular: NDArray[np.float32]
    # [N], position in the slate, from 0. It is never a feature.
    position: I64
    # [N], how many exposures the viewer had before this one; 0 for a new or unknown viewer.
    viewer_seen: I64
    # [N], how many exposures showed the candidate before this one.
    candidate_seen: I64
    request_ids: Sequence[str]
    candidate_ids: Sequence[str | None]
    # The surface's `[baseline]`, a rule to compare models with, if it has one.
    rule: Baseline | None = None
    # [N], the log weight with which the row's place was drawn, and −inf for candidates that were
    # not drawn. It is NaN for slates that were not drawn, and for slates with a candidate that is
    # not a row; an unknown candidate that was not drawn does no harm. It is None if the log has no
    # drawn order.
    weight: F64 | None = None
    # [N], the arm to which the viewer was assigned at random: 0 is the largest arm, and −1 means
    # outside of the experiment. It is None if there was no experiment.
    arm: I64 | None = None
    # [N], whether the request itself chose (pinned) the row's place; None if no request pinned one.
    pinned: Bools | None = None
    # [N], the fields that the caller asked for, as a record for each owner; None if it asked for
    # none.
    fields: PackedRows | None = None

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def label(self) -> NDArray[np.float32]:
        """The only outcome as a share of its cap, `[N]`. With several outcomes, first use `of`."""
        assert self.outcomes.shape[1] == 1
        return self.outcomes[:, 0]

    def of(self, outcome: int) -> Dataset:
        """Return the rows where outcome number `outcome` is known, with that outcome alone."""
        known = ~np.isnan(self.outcomes[:, outcome])
        rows = self if known.all() else self.take(np.flatnonzero(known))
        weight = None
        if self.weight is not None:
            # The probability of a drawn order can only be computed from all of its candidates.
            cut = self.slate[~known & ~np.isneginf(self.weight)]
            weight = np.where(np.isin(self.slate, cut), np.nan, self.weight)[known]
        return replace(rows, outcomes=rows.outcomes[:, outcome : outcome + 1], weight=weight)

    def unpinned(self) -> Dataset:
        """Return the rows whose places the ranking chose, as pinned rows say nothing about it.

        Raises:
            TabrankError: there are rows, and requests pinned all of them.
        """
        if self.pinned is None:
            return self
        if len(self) and self.pinned.all():
            raise TabrankError(
                f"requests pinned the places of all {len(self):,} rows, so they say nothing about how a ranking "
                "orders; use a log in which some candidates were not pinned"
            )
        return replace(self.take(np.flatnonzero(~self.pinned)), pinned=None)

    @property
    def rules(self) -> dict[str, NDArray[np.floating]]:
        """Values `[N]` by which `popular` sorts, and those of `baseline` if the surface has it."""
        if self.rule is None:
            return {"popular": self.popular}
        baseline = self.rule.worth(self.columns.numeric, self.matrix.numeric)
        return {"popular": self.popular, "baseline": baseline}

    def take(self, rows: I64 | Bools | slice) -> Dataset:
        """Return the rows with these numbers or of this mask as a copy; a slice gives a view."""

        def of(array: NDArray[Any]) -> NDArray[Any]:
            return array[rows] if isinstance(rows, slice) else taken(array, rows)

        arrays: dict[str, Any] = {name: of(array) for name, array in self.arrays().items()}
        return replace(self, matrix=Matrix(of(self.matrix.numeric), of(self.matrix.category)), **arrays)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays `[N]` by their names."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


def sample(data: Dataset, most: int, among: NDArray[np.bool_] | None = None) -> Dataset:
    """Return a sample of whole slates, evenly spread over time, with about `most` rows at most.

    With the mask `among` `[N]`, only slates with at least one such row are taken.
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


def kept_evenly(num_shown: I64, most: int) -> Bools:
    """Choose evenly spaced exposures that show about `most` candidates in all, as a mask `[N]`.

    `num_shown` `[N]` is the number of candidates of each exposure.
    """
    num = len(num_shown) * most // max(1, int(num_shown.sum()))
    return np.isin(np.arange(len(num_shown)), evenly(len(num_shown), num))


def build(
    schema: Schema,
    log: Log,
    *,
    history: Log | None = None,
    weights: Weights | None = None,
    newest_ms: float = np.inf,
    arms: I64 | None = None,
    kept: Bools | None = None,
    fields: Sequence[str] = (),
    progress: Progress = lambda share: None,
) -> Dataset:
    """Build the dataset of `log`: decide which rows there are, then compute their features.

    The state starts from the log `history`, if it is given. Large arrays lie in files.

    Args:
        weights: as `training.data.draws.drawn_weights` returns them.
        newest_ms: only candidates shown within this time before the last row become rows. Earlier
            records still build the state.
        arms: as `training.data.draws.served_arms` returns them.
        kept: a mask over the log's exposures. Only candidates of these exposures become rows; the
            other exposures still build the state.
        fields: the fields whose values the rows keep, such as candidate.host or candidate.ends_ms.
        progress: is called with the share of the rows that have their features.

    Raises:
        TabrankError: the primary outcome is not known for any row, or all shown candidates were
            unknown when they were shown.
    """
    skipped = len(history.exposures) if history else 0
    whole = concat_logs([history, log]) if history else log
    features, replay = Features(schema), Replay(schema, whole)
    outcomes, viewers = label(replay, whole, schema.surface), replay.exposure_viewer
    # Exposures have their numbers in the whole log. Those of the history become no rows.
    number = np.arange(len(viewers))
    is_kept = (number >= skipped) & ~replay.before_snapshot
    if kept is not None:
        is_kept[skipped:] &= kept
    able = _able(replay, outcomes, is_kept, newest_ms)
    # The service puts unknown candidates last without a score, so they teach a model nothing.
    is_left_out = schema.surface.unknown_candidates == "last"
    unknown = able & replay.unknown() if is_left_out else np.zeros(len(able), np.bool_)
    is_row = able & ~unknown
    _refuse_unlabelled(schema.surface, outcomes[is_row, 0], num_unknown=int(unknown.sum()))

    # [P], the exposure of each shown candidate, and [N] the shown candidate of each row.
    of_shown, rows = np.repeat(number, np.diff(replay.first)), np.flatnonzero(is_row)
    rows = rows[np.argsort(replay.exposure_ms[of_shown[rows]], kind="stable")]
    exposure = of_shown[rows]
    # At one time, one replica of a service may have seen more of the log than another. The state
    # can only move forward, so make `sees` monotone.
    order, sees = skipped + np.argsort(replay.exposure_ms[skipped:], kind="stable"), replay.sees.copy()
    sees[order] = np.maximum.accumulate(sees[order])
    numeric = empty((len(rows), len(features.columns.numeric)), np.float32)
    category = empty((len(rows), features.columns.num_category), np.uint64)
    held = empty((len(rows),), _layout(schema, fields))
    contexts = whole.exposures["context"].combine_chunks()
    # All rows of a moment have the same state.
    moments = np.flatnonzero(np.diff(replay.exposure_ms[exposure]) | np.diff(sees[exposure])) + 1
    for begin, end in pairwise([0, *moments.tolist(), len(rows)]):
        part = slice(begin, end)
        replay.advance_to(int(sees[exposure[begin]]))
        exposures, lengths = np.unique(exposure[part], return_counts=True)
        matrix, owners = _compute(features, replay, contexts, exposures, rows[part], lengths)
        numeric[part], category[part] = matrix.numeric, matrix.category
        for owner in held.dtype.names or ():
            values = owners[owner][[*(held.dtype[owner].names or ())]]
            held[owner][part] = values if owner == "candidate" else np.repeat(values, lengths)
        progress(end / len(rows))

    drawn = {i + skipped: weight for i, weight in (weights or {}).items()}
    pinned = _pinned(replay, whole)
    viewer_seen = np.where(viewers > 0, _earlier(viewers, replay.exposure_ms), 0)
    times: I64 = log.exposures["one_in"].to_numpy()
    data = Dataset(
        columns=features.columns,
        matrix=Matrix(numeric, category),
        outcomes=taken(outcomes, rows),
        slate=taken(number - skipped, exposure),
        viewer=taken(np.where(viewers > 0, viewers, -1 - number), exposure),
        shown=taken(replay.shown, rows),
        ts_ms=taken(replay.exposure_ms, exposure),
        popular=taken(numeric[:, features.popular], slice(None)),
        position=taken(np.arange(len(of_shown)) - replay.first[of_shown], rows),
        viewer_seen=taken(viewer_seen, exposure),
        candidate_seen=taken(_earlier(replay.shown, replay.exposure_ms[of_shown]), rows),
        request_ids=log.exposures["request_id"].take(np.repeat(np.arange(len(times)), times)).to_pylist(),
        candidate_ids=replay.state.candidates.ids,
        rule=schema.surface.baseline,
        weight=taken(_whole_draws(replay, drawn, is_row, unknown), rows) if drawn else None,
        arm=None if arms is None else taken(arms, exposure - skipped),
        pinned=None if pinned is None else taken(pinned, rows),
        fields=held if held.dtype.names else None,
    )
    return _repeated(data, times) if times.max() > 1 else data


def _repeated(data: Dataset, times: I64) -> Dataset:
    """Repeat the rows of each exposure as often as it represents one, each time as a new slate.

    `slate` of the rows is the number of their exposure.
    """
    starts, first = np.flatnonzero(np.diff(data.slate, prepend=-1)), np.cumsum(times) - times
    rows, slates = [], []
    for own in np.split(np.arange(len(data)), starts[1:]):
        exposure = data.slate[own[0]]
        rows.append(np.tile(own, times[exposure]))
        slates.append(np.repeat(first[exposure] + np.arange(times[exposure]), len(own)))
    return replace(data.take(np.concatenate(rows)), slate=np.concatenate(slates))


def _able(replay: Replay, outcomes: NDArray[np.float32], kept: Bools, newest_ms: float) -> Bools:
    """Return which shown candidates of the newest `kept` exposures have a known outcome."""
    lengths = np.diff(replay.first)
    able = ~np.isnan(outcomes).all(axis=1) & np.repeat(kept, lengths)
    shown_ms = np.repeat(replay.exposure_ms, lengths)
    return np.asarray(able & (shown_ms >= shown_ms[able].max(initial=EVER_MS) - newest_ms), np.bool_)


def _refuse_unlabelled(surface: Surface, primary: NDArray[np.float32], *, num_unknown: int) -> None:
    """Raise TabrankError if no row has the `primary` outcome `[N]`, and tell what was left out.

    `num_unknown` is the number of rows that were left out, because their candidates were unknown.
    """
    if num_unknown:
        share = num_unknown / (num_unknown + len(primary))
        print_progress(
            f"left out {num_unknown} rows ({share:.1%}) of candidates that were unknown when they were shown: "
            'the log has no earlier record of them, and the surface has unknown_candidates = "last"'
        )
    if num_unknown and not len(primary):
        raise TabrankError(
            "every shown candidate was unknown when it was shown; write the candidates to the log with times "
            'before the rankings, or set unknown_candidates = "scored" in the surface'
        )
    if np.isnan(primary).all():
        raise TabrankError(
            f"the outcome {next(iter(surface.predicted))!r} is not known for any row: the log is shorter than its "
            f"window of {spelled(surface.primary.within_ms / 1000)}; give a longer log, or a shorter `within`"
        )


def _whole_draws(replay: Replay, drawn: Weights, is_row: Bools, unknown: Bools) -> F64:
    """Return the log weight of each shown candidate; NaN if its slate is no whole draw."""
    found = np.full(len(replay.shown), np.nan)
    for i, weight in drawn.items():
        shown = slice(*replay.first[i : i + 2])
        if (is_row[shown] | (unknown[shown] & np.isneginf(weight))).all():
            found[shown] = weight
    return found


def _pinned(replay: Replay, log: Log) -> Bools | None:
    """Return whether the request chose the place of each shown candidate; None if it never did."""
    pinned = log.exposures["pinned"].combine_chunks()
    places = replay.first[pc.list_parent_indices(pinned).to_numpy()] + pc.list_flatten(pinned).to_numpy()
    return np.isin(np.arange(len(replay.shown)), places) if len(places) else None


def recompute_features(
    features: Features, log: Log, replay: Replay, exposures: I64
) -> Iterator[tuple[int, Matrix]]:
    """Yield (index in the log, features of its candidates in the order shown) for each exposure.

    Exposures are ordered by the state that they saw. The replay only moves forward, so it can be
    used once.
    """
    contexts = log.exposures["context"].combine_chunks()
    for i in exposures[np.argsort(replay.sees[exposures], kind="stable")].tolist():
        replay.advance_to(int(replay.sees[i]))
        shown = np.arange(replay.first[i], replay.first[i + 1])
        yield i, _compute(features, replay, contexts, np.array([i]), shown, np.array([len(shown)]))[0]


def _layout(schema: Schema, fields: Sequence[str]) -> np.dtype[np.void]:
    """Return a record type for fields such as candidate.host, with a subrecord for each owner."""
    of_owner: dict[str, list[Any]] = {}
    for owner, _, name in (field.partition(".") for field in dict.fromkeys(fields)):
        of_owner.setdefault(owner, []).append((name, getattr(schema, owner)[name]))
    return np.dtype([*of_owner.items()])


def _compute(
    features: Features, replay: Replay, contexts: pa.Array, exposures: I64, pairs: I64, lengths: I64
) -> tuple[Matrix, dict[str, PackedRows]]:
    """Return the features of the shown candidates `pairs` in the present state.

    `lengths` says how many of them belong to each exposure. Also returns the stored rows of the
    viewers, the contexts and the candidates.
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
    """Count, for each (key, time), the entries of the same key at strictly earlier times."""
    first = pd.Series(times).groupby(keys).rank(method="min")
    return first.to_numpy().astype(np.int64) - 1
