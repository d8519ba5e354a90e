"""Rank a batch of requests: hydrate → features → score → order.

Shapes: B requests; R rows, one per request and candidate, those of a request together; C candidates
of one request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import msgspec
import numpy as np

from serve.config.settings import BASELINE, NOOP, SHUFFLE, Arm
from serve.contract.errors import StoreUnavailable
from serve.features.matrix import Features, Matrix
from serve.features.rows import encode
from serve.features.slots import F32, F64, I64, Bools, PackedRows
from serve.ranking.exploration import draw
from serve.stores.candidate_table import CandidateTable

# (version, rows, request of each row) → scores.
Score = Callable[[str, Matrix, I64], Awaitable[F32]]
NOTHING_DONE = {"features": 0.0, "score": 0.0}
# Heuristics beside the popular order: the worth of a query's candidates, given their popularity.
# They need no state, so they rank even while the store is down.
WORTHS: Mapping[str, Callable[[F32], F32]] = {
    NOOP: np.zeros_like,
    SHUFFLE: lambda popularity: np.random.default_rng().random(len(popularity), np.float32),
}


class Query(msgspec.Struct, frozen=True):
    """One admitted request. `model` is the artifact version of its arm, if there is one."""

    request_id: str
    viewer: str | None
    candidates: Sequence[str]
    now_ms: int
    arm: Arm
    # The experiment that the viewer takes part in.
    experiment: str | None
    model: str | None
    limit: int
    context: Mapping[str, object]
    # Request-time fields by the candidate's index.
    stated: Mapping[int, Mapping[str, object]]
    explain: bool
    traffic: str
    # Keep the features to explain or to log them.
    keep_matrix: bool
    # Draw the order at random from the scores.
    explore: bool
    # Most candidates that the model scores: the most popular ones, if a call takes fewer.
    num_scored: int


class Slate(msgspec.Struct, frozen=True):
    """One ranked query.

    `order` `[C]` holds indices into `candidates`, best first; `score` `[C]` is NaN where unscored.
    """

    query: Query
    order: I64
    score: F32
    rung: str
    degraded: tuple[str, ...]
    model: str | None
    unknown_viewer: bool
    unknown_candidates: list[str]
    # Number of the last record that the features contain.
    seen_seq: int
    # Features of the rows, if the query keeps them.
    matrix: Matrix | None
    # `[C]` probability of each pick given the picks before it, if the order was drawn.
    propensity: F64 | None
    stage_ms: Mapping[str, float]


class _Batch(NamedTuple):
    """Hydrated queries: viewers `[B]`, candidates `[R]` and contexts `[B]` of one commit."""

    queries: Sequence[Query]
    # The rows of each query.
    parts: list[slice]
    viewers: PackedRows
    unknown_viewer: list[bool]
    # Why a query gets the popular order instead of its arm's; None if it does not.
    failed: list[str | None]
    # Row numbers in the candidate table, 0 for unknown candidates.
    numbers: I64
    candidates: PackedRows
    ended: Bools
    context: PackedRows
    request_of_row: I64
    now_ms: I64
    seen_seq: int


@dataclass
class Ranker:
    """Rank queries with the live candidates, the features and a scorer."""

    features: Features
    live: CandidateTable
    score: Score
    on_degraded: Callable[[str, Exception, str | None], None] = lambda reason, error, request_id: None
    on_batch: Callable[[int, Mapping[str, float]], None] = lambda num_candidates, stage_ms: None

    def __post_init__(self) -> None:
        self._blank_viewer = self.features.schema.blank("viewer").tobytes()

    async def rank(self, queries: Sequence[Query]) -> list[Slate]:
        """Rank each query.

        A store or scorer that is down degrades the answer; it never raises.
        """
        begun = time.perf_counter()
        batch = self._hydrate(queries)
        rows, matrix, popularity = self._features(batch)
        worth = self._worth(batch, rows, matrix, popularity)
        computed = time.perf_counter()
        score = await self._scores(batch, rows, matrix)
        stage_ms = {"features": (computed - begun) * 1e3, "score": (time.perf_counter() - computed) * 1e3}
        self.on_batch(len(matrix.numeric), stage_ms)
        return _slates(batch, score, worth, matrix, stage_ms)

    def popular(self, queries: Sequence[Query], reasons: Sequence[str]) -> list[Slate]:
        """Return the popular order from the candidate table; `reasons` say why it is not scored."""
        batch = self._look_up(queries, {}, reasons)
        unscored = np.full(len(batch.numbers), np.nan, np.float32)
        return _slates(batch, unscored, self._popularity(batch).astype(np.float64), None, NOTHING_DONE)

    def _hydrate(self, queries: Sequence[Query]) -> _Batch:
        """Read the viewers from the store, then look up the candidates of the same commit."""
        named = [query.viewer for query in queries if query.viewer is not None]
        try:
            packed = dict(zip(named, self.live.read(named), strict=True))
        except StoreUnavailable as error:
            self.on_degraded("store_unavailable", error, queries[0].request_id)
            failed = [None if query.arm.scorer in WORTHS else "store_unavailable" for query in queries]
            return self._look_up(queries, {}, failed)
        return self._look_up(queries, packed, [None] * len(queries))

    def _look_up(
        self, queries: Sequence[Query], packed: Mapping[str, bytes | None], failed: Sequence[str | None]
    ) -> _Batch:
        """Hydrate queries; `packed` holds the viewers that were read, None for unknown ones."""
        schema, blank = self.features.schema, self._blank_viewer
        viewers = [packed.get(query.viewer or "", blank) for query in queries]
        numbers = self.live.rows.find([name for query in queries for name in query.candidates])
        candidates = self.live.rows.table.take(numbers)
        lengths = [len(query.candidates) for query in queries]
        ends = accumulate(lengths)
        request_of_row = np.repeat(np.arange(len(queries)), lengths)
        now_ms = np.array([query.now_ms for query in queries], np.int64)
        batch = _Batch(
            queries=queries,
            parts=[slice(end - length, end) for length, end in zip(lengths, ends, strict=True)],
            viewers=np.frombuffer(b"".join([row or blank for row in viewers]), schema.viewer),
            unknown_viewer=[row is None for row in viewers],
            failed=list(failed),
            numbers=numbers,
            candidates=candidates,
            ended=candidates["ends_ms"] <= now_ms[request_of_row],
            context=schema.context_rows([query.context for query in queries]),
            request_of_row=request_of_row,
            now_ms=now_ms,
            seen_seq=self.live.seq,
        )
        self._overwrite_stated(batch)
        return batch

    def _overwrite_stated(self, batch: _Batch) -> None:
        """Overwrite candidate fields with the request-time fields that the requests state."""
        declared = self.features.schema.surface.fields["candidate"]
        for query, part in zip(batch.queries, batch.parts, strict=True):
            for place, fields in query.stated.items():
                for name, value in fields.items():
                    batch.candidates[name][part.start + place] = encode(declared[name], value)

    def _features(self, batch: _Batch) -> tuple[slice | I64, Matrix, F32]:
        """Return the rows to score, their features, and the popularity `[R]` of all rows."""
        if all(query.num_scored >= len(query.candidates) for query in batch.queries):
            matrix = self._matrix(batch, slice(None))
            return slice(None), matrix, _sortable(matrix.numeric[:, self.features.popular])
        popularity = self._popularity(batch)
        rows = _most_popular(batch, popularity)
        return rows, self._matrix(batch, rows), popularity

    def _matrix(self, batch: _Batch, rows: slice | I64) -> Matrix:
        return self.features.compute(
            batch.viewers, batch.candidates[rows], batch.context, batch.request_of_row[rows], batch.now_ms
        )

    def _popularity(self, batch: _Batch) -> F32:
        return _sortable(
            self.features.popularity(batch.candidates, batch.context, batch.request_of_row, batch.now_ms)
        )

    def _worth(self, batch: _Batch, rows: slice | I64, matrix: Matrix, popularity: F32) -> F64:
        """Return `[R]` the worth that orders unscored rows: by their arm's heuristic or popularity.

        `matrix` holds the features of `rows`, which contain all rows of queries without a model.
        """
        worth = popularity.astype(np.float64)
        by_rule = worth.copy()
        if any(query.arm.scorer == BASELINE for query in batch.queries):
            rule = self.features.schema.surface.baseline
            assert rule is not None, "such settings are refused"
            by_rule[rows] = rule.worth(self.features.columns.numeric, matrix.numeric)
        for query, part, failed in zip(batch.queries, batch.parts, batch.failed, strict=True):
            if failed is None and query.arm.scorer == BASELINE:
                worth[part] = by_rule[part]
            elif failed is None and query.arm.scorer in WORTHS:
                worth[part] = WORTHS[query.arm.scorer](popularity[part])
        return worth

    async def _scores(self, batch: _Batch, rows: slice | I64, matrix: Matrix) -> F32:
        """Score `rows`, whose features are `matrix`: `[R]`, NaN where unscored."""
        request_of_row = batch.request_of_row[rows]
        scores = np.full(len(request_of_row), np.nan, np.float32)
        # A batch has one version, except while one version replaces another.
        for model, members in _by_model(batch).items():
            is_all = len(members) == len(batch.queries)
            mine = slice(None) if is_all else np.flatnonzero(np.isin(request_of_row, members))
            asked = matrix.rows(mine)
            try:
                answered = await self.score(model, asked, request_of_row[mine])
                if len(answered) != len(asked.numeric):
                    raise ValueError(f"expected {len(asked.numeric)} scores, got {len(answered)}")
                scores[mine] = answered
            # After any failure of the scorer, the popular order is still available.
            except Exception as error:
                self.on_degraded("scorer_unavailable", error, batch.queries[members[0]].request_id)
                for b in members:
                    batch.failed[b] = "scorer_unavailable"
        everywhere = np.full(len(batch.numbers), np.nan, np.float32)
        everywhere[rows] = scores
        return everywhere


def _sortable(popularity: F32) -> F32:
    """Return the popularity with missing values last."""
    return np.where(np.isnan(popularity), np.float32(-np.inf), popularity)


def _most_popular(batch: _Batch, popularity: F32) -> I64:
    """Return the rows to score, ascending: of each query the most popular that have not ended."""
    owner = batch.request_of_row
    order = np.lexsort((-popularity, batch.ended, owner))
    # Index within the request; `order` keeps each request's rows together.
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    wanted = np.array([query.num_scored for query in batch.queries], np.int64)
    return np.sort(order[place < wanted[owner]])


def _by_model(batch: _Batch) -> dict[str, list[int]]:
    """Return the indices of the queries to score by version; fail those that have none."""
    members: dict[str, list[int]] = {}
    for b, query in enumerate(batch.queries):
        if batch.failed[b] is not None or not query.arm.by_model:
            continue
        if query.model is None:
            batch.failed[b] = "no_model"
        elif query.candidates:
            members.setdefault(query.model, []).append(b)
    return members


def _order(batch: _Batch, score: F32, worth: F64) -> I64:
    """Sort the rows of each query, all at once: scored, unscored by their worth, then ended.

    Ties keep the given order.
    """
    # Sort keys above every score: the negated scores are -1 to 0.
    unscored = np.where(batch.ended, np.float32(2.0), np.float32(1.0))
    return np.lexsort((-worth, np.where(np.isnan(score), unscored, -score), batch.request_of_row))


def _slates(
    batch: _Batch, score: F32, worth: F64, matrix: Matrix | None, stage_ms: Mapping[str, float]
) -> list[Slate]:
    """Order each query's candidates, and state how the order came about."""
    finite = np.isfinite(score)
    score = np.where(finite & ~batch.ended, score, np.float32(np.nan))
    order = _order(batch, score, worth)
    # Without the features of all rows, none are kept.
    whole = matrix if matrix is not None and len(matrix.numeric) == len(score) else None
    all_known = batch.numbers.all()
    slates = []
    for b, (query, part) in enumerate(zip(batch.queries, batch.parts, strict=True)):
        degraded = _degraded(query, batch.failed[b], finite[part])
        by_model = query.arm.by_model and batch.failed[b] is None
        places, propensity = order[part] - part.start, None
        # Unscored candidates stay last.
        if query.explore and by_model:
            drawn, propensity = draw(score[part][places], np.random.default_rng())
            places = places[drawn]
        unknown = [] if all_known else np.flatnonzero(batch.numbers[part] == 0).tolist()
        slates.append(
            Slate(
                query=query,
                order=places,
                score=score[part],
                rung="fallback" if batch.failed[b] else "partial" if degraded else "full",
                degraded=degraded,
                model=query.model if by_model else None,
                unknown_viewer=batch.unknown_viewer[b],
                unknown_candidates=[query.candidates[i] for i in unknown],
                seen_seq=batch.seen_seq,
                matrix=whole.rows(part) if whole is not None and query.keep_matrix else None,
                propensity=propensity,
                stage_ms=stage_ms,
            )
        )
    return slates


def _degraded(query: Query, failed: str | None, finite: Bools) -> tuple[str, ...]:
    """Return why an answer is not `full`; `finite` `[C]` tells which scores are."""
    if failed is not None:
        return (failed,)
    if not query.arm.by_model:
        return ()
    overload = ("overload",) if query.num_scored < len(query.candidates) else ()
    if np.count_nonzero(finite) < query.num_scored:
        return (*overload, "non_finite_score")
    return overload
