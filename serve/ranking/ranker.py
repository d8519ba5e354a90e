"""Rank a batch of requests: hydrate → features → score → utility → order → re-rank.

Shapes: B requests; R rows, one per request and candidate, those of a request together; C candidates
of one request; O outcomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serve.config.settings import BASELINE
from serve.features.matrix import Features, Matrix
from serve.features.slots import F32, F64, I64, Bools, FieldRef
from serve.ranking.exploration import explored
from serve.ranking.hydration import HydratedBatch, Hydrator, OnDegraded
from serve.ranking.order import LIVE, UNKNOWN, WORTHS, missing_last, most_popular, ordered
from serve.ranking.query import Query, Slate
from serve.ranking.scoring import CallModel, model_shares
from serve.ranking.slate import ruled
from serve.ranking.slate.where import Facts, facts_of
from serve.ranking.utility import weighed
from serve.stores.candidate_table import CandidateTable

NOTHING_DONE = {"features": 0.0, "score": 0.0}


class _Scored(NamedTuple):
    """What orders the rows of a batch: their scores and, where there are none, their worth."""

    # The rows whose features were computed, and these features.
    rows: slice | I64
    matrix: Matrix | None
    # The utility `[R]`, NaN where unscored, and the amounts `[R, O]` of the outcomes.
    score: F32
    amounts: F32
    # What a row without a score is worth `[R]`.
    worth: F64
    stage_ms: Mapping[str, float]


@dataclass(eq=False)
class Ranker:
    """Rank queries with the live candidates, the features and a scorer."""

    features: Features
    live: CandidateTable
    call_model: CallModel
    on_degraded: OnDegraded
    on_batch: Callable[[int, Mapping[str, float]], None] = lambda num_candidates, stage_ms: None

    def __post_init__(self) -> None:
        self._hydrator = Hydrator(self.features.schema, self.live, self.on_degraded)

    async def rank(self, queries: Sequence[Query]) -> list[Slate]:
        """Rank each query.

        A store or scorer that is down degrades the answer; it never raises.
        """
        begun = time.perf_counter()
        batch = self._hydrator.hydrate(queries)
        rows, matrix, popularity = self._features(batch)
        worth = self._worth(batch, rows, matrix, popularity)
        computed = time.perf_counter()
        shares = await model_shares(batch, rows, matrix, self.call_model, self.on_degraded)
        score, amounts = weighed(shares, [query.weighing for query in queries], batch.request_of_row)
        stage_ms = {"features": (computed - begun) * 1e3, "score": (time.perf_counter() - computed) * 1e3}
        self.on_batch(len(matrix.numeric), stage_ms)
        return self._slates(batch, _Scored(rows, matrix, score, amounts, worth, stage_ms))

    def popular(self, queries: Sequence[Query], reasons: Sequence[str]) -> list[Slate]:
        """Return the popular order from the candidate table; `reasons` say why none is scored."""
        batch = self._hydrator.look_up(queries, {}, reasons)
        unscored = np.full((len(batch.numbers), 1), np.nan, np.float32)
        worth = self._popularity(batch).astype(np.float64)
        scored = _Scored(slice(0), None, unscored[:, 0], unscored, worth, NOTHING_DONE)
        return self._slates(batch, scored)

    def _features(self, batch: HydratedBatch) -> tuple[slice | I64, Matrix, F32]:
        """Return the rows to score, their features, and the popularity `[R]` of all rows."""
        if all(query.num_scored >= len(query.candidates) for query in batch.queries):
            matrix = self._matrix(batch, slice(None))
            return slice(None), matrix, missing_last(matrix.numeric[:, self.features.popular])
        popularity = self._popularity(batch)
        num_scored = np.array([query.num_scored for query in batch.queries], np.int64)
        rows = most_popular(batch.request_of_row, popularity, batch.standing, num_scored)
        return rows, self._matrix(batch, rows), popularity

    def _matrix(self, batch: HydratedBatch, rows: slice | I64) -> Matrix:
        return self.features.compute(
            batch.viewers,
            batch.candidates[rows],
            batch.context,
            batch.request_of_row[rows],
            batch.now_ms,
            {field: (table, at[rows]) for field, (table, at) in batch.values.items()},
        )

    def _popularity(self, batch: HydratedBatch) -> F32:
        return missing_last(
            self.features.popularity(
                batch.candidates, batch.context, batch.request_of_row, batch.now_ms, batch.values
            )
        )

    def _worth(self, batch: HydratedBatch, rows: slice | I64, matrix: Matrix, popularity: F32) -> F64:
        """Return the worth `[R]` that orders unscored rows: by their arm's heuristic or popularity.

        `matrix` holds the features of `rows`, which contain all rows of queries without a model.
        """
        worth = popularity.astype(np.float64)
        by_baseline = worth.copy()
        if any(query.arm.scorer == BASELINE for query in batch.queries):
            baseline = self.features.schema.surface.baseline
            assert baseline is not None, "such settings are refused"
            by_baseline[rows] = baseline.worth(self.features.columns.numeric, matrix.numeric)
        for query, part, failed in zip(batch.queries, batch.parts, batch.failed, strict=True):
            if failed is None and query.arm.scorer == BASELINE:
                worth[part] = by_baseline[part]
            elif failed is None and query.arm.scorer in WORTHS:
                worth[part] = WORTHS[query.arm.scorer](popularity[part])
        return worth

    def _slates(self, batch: HydratedBatch, scored: _Scored) -> list[Slate]:
        """Order and re-rank each query's candidates, and state how the order came about."""
        matrix, finite = scored.matrix, np.isfinite(scored.score)
        is_scored = finite & (batch.standing == LIVE)
        score = np.where(is_scored, scored.score, np.float32(np.nan))
        amounts = np.where(is_scored[:, None], scored.amounts, np.float32(np.nan))
        order = ordered(batch.request_of_row, score, scored.worth, batch.standing)
        # Features are kept only if those of all rows were computed.
        whole = matrix if matrix is not None and len(matrix.numeric) == len(score) else None
        any_unknown = batch.unknown.any()
        slates = []
        for b, (query, part) in enumerate(zip(batch.queries, batch.parts, strict=True)):
            unknown = np.flatnonzero(batch.unknown[part]).tolist() if any_unknown else []
            num_unknown = int(np.count_nonzero(batch.standing[part] == UNKNOWN)) if any_unknown else 0
            degraded = _degraded(query, batch.failed[b], finite[part], num_unknown)
            by_model = query.arm.by_model and batch.failed[b] is None
            num_outcomes = len(query.weighing.weights)
            places = order[part] - part.start
            slate = Slate(
                query=query,
                order=places,
                score=score[part],
                # With one outcome, the score already states the prediction.
                predictions=amounts[part, :num_outcomes] if by_model and num_outcomes > 1 else None,
                rung="fallback" if batch.failed[b] else "partial" if degraded else "full",
                degraded=degraded,
                model=query.model if by_model else None,
                unknown_viewer=batch.unknown_viewer[b],
                unknown_candidates=[query.candidates[i] for i in unknown],
                num_unknown=num_unknown,
                seen_seq=batch.seen_seq,
                matrix=whole.rows(part) if whole is not None and query.keep_matrix else None,
                stage_ms=scored.stage_ms,
                lacks_fields=any(_is_absent(batch, b, ref) for ref in query.asked),
            )
            if query.explore and by_model:
                slate = explored(slate)
            elif query.arm.slate or query.pins:
                slate = ruled(slate, batch.standing[part], self._facts(batch, b, scored))
            slates.append(slate)
        return slates

    def _facts(self, batch: HydratedBatch, b: int, scored: _Scored) -> Facts:
        """Return what the rules may ask about the candidates of a query."""
        rows, matrix = scored.rows, scored.matrix
        mine, at = batch.parts[b], None
        owners = {
            "candidate": batch.candidates[mine],
            "viewer": batch.viewers[b : b + 1],
            "context": batch.context[b : b + 1],
        }
        if not isinstance(rows, slice):
            begin = mine.start
            mine = slice(*np.searchsorted(rows, (begin, mine.stop)))
            at = rows[mine] - begin
        return facts_of(owners, self.features.columns, matrix.rows(mine) if matrix else None, at)


def _is_absent(batch: HydratedBatch, b: int, field: FieldRef) -> bool:
    """Return True if a query's context, or each of its candidates, lacks a field."""
    if field.owner == "context":
        return batch.queries[b].context.get(field.name) is None
    values = batch.candidates[field.name][batch.parts[b]]
    # A missing number is NaN, and a missing category is 0.
    return not (np.isfinite(values) if values.dtype.kind == "f" else values != 0).any()


def _degraded(query: Query, failed: str | None, finite: Bools, num_unknown: int) -> tuple[str, ...]:
    """Return why an answer is not `full`; `finite` `[C]` tells which scores are finite.

    Unknown candidates are not meant to be scored, so they do not degrade an answer.
    """
    if failed is not None:
        return (failed,)
    if not query.arm.by_model:
        return ()
    num_known = len(query.candidates) - num_unknown
    overload = ("overload",) if query.num_scored < num_known else ()
    if np.count_nonzero(finite) < min(query.num_scored, num_known):
        return (*overload, "non_finite_score")
    return overload
