"""Rank a batch of requests: one function whose lines are the stages.

Shapes: B requests, R rows (one per request and candidate).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.config.settings import NOOP, SHUFFLE, Arm
from serve.contract.errors import StoreUnavailable
from serve.features.matrix import Features, Matrix
from serve.features.rows import encode
from serve.features.slots import I64, PackedRows
from serve.ranking.candidate_table import CandidateTable
from serve.ranking.exploration import draw

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
# (version, rows, request of each row) → scores.
Score = Callable[[str, Matrix, I64], Awaitable[F32]]
NOTHING_DONE = {"features": 0.0, "score": 0.0}


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
    # Most candidates that the model scores; under load, the most popular ones.
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


@dataclass
class Ranker:
    """Rank queries with the live candidates, the features and a scorer."""

    features: Features
    live: CandidateTable
    score: Score
    on_degraded: Callable[[str, Exception, str | None], None] = field(
        default=lambda reason, error, request_id: None
    )
    on_batch: Callable[[int, Mapping[str, float]], None] = field(
        default=lambda num_candidates, stage_ms: None
    )

    async def rank(self, queries: Sequence[Query]) -> list[Slate]:
        """Rank each query: fetch, compute features, score, select.

        A store or scorer that is down degrades the answer; it never raises.
        """
        begun = time.perf_counter()
        viewers, unknown_viewer, store_down = self._fetch_viewers(queries)
        rows, owner = self._candidate_rows(queries)
        batch = _Batch(queries, owner, rows, self.live.seq)
        candidates = self._stated(self.live.rows.table.take(rows), queries, owner)
        context = self.features.schema.context_rows([query.context for query in queries])
        now_ms = np.array([query.now_ms for query in queries], np.int64)
        ended = candidates["ends_ms"] <= now_ms[owner]
        popular = None
        kept: slice | I64 = slice(None)
        if any(query.num_scored < len(query.candidates) for query in queries):
            popular = self.features.popularity(candidates, context, owner, now_ms)
            kept = _best_known(queries, popular, ended, owner)
        matrix = self.features.compute(viewers, candidates[kept], context, owner[kept], now_ms)
        computed = time.perf_counter()
        scores, failed = await self._scores(queries, matrix, owner[kept], store_down)
        stage_ms = {"features": (computed - begun) * 1e3, "score": (time.perf_counter() - computed) * 1e3}
        self.on_batch(len(scores), stage_ms)
        if popular is None:
            popular = matrix.numeric[:, self.features.popular]
            batch = batch._replace(matrix=matrix)
        score = np.full(len(rows), np.nan, np.float32)
        score[kept] = scores
        return _select(batch._replace(stage_ms=stage_ms), popular, score, ended, failed, unknown_viewer)

    def popular(self, query: Query, reason: str) -> Slate:
        """Return the popular order from the candidate table, for a query that cannot be scored."""
        rows = self.live.rows.find(query.candidates)
        owner = np.zeros(len(rows), np.int64)
        candidates = self._stated(self.live.rows.table.take(rows), [query], owner)
        context = self.features.schema.context_rows([query.context])
        now_ms = np.array([query.now_ms], np.int64)
        popular = self.features.popularity(candidates, context, owner, now_ms)
        ended = candidates["ends_ms"] <= query.now_ms
        unscored = np.full(len(rows), np.nan, np.float32)
        batch = _Batch([query], owner, rows, self.live.seq)
        return _select(batch, popular, unscored, ended, [reason], [False])[0]

    def _candidate_rows(self, queries: Sequence[Query]) -> tuple[I64, I64]:
        lengths = [len(query.candidates) for query in queries]
        rows = self.live.rows.find([name for query in queries for name in query.candidates])
        return rows, np.repeat(np.arange(len(queries)), lengths)

    def _fetch_viewers(self, queries: Sequence[Query]) -> tuple[PackedRows, list[bool], bool]:
        """Read the viewers of a batch at once: (rows `[B]`, is unknown `[B]`, store is down)."""
        viewers = self.features.schema.blank("viewer", len(queries))
        named = [(i, query.viewer) for i, query in enumerate(queries) if query.viewer is not None]
        unknown = [query.viewer is not None for query in queries]
        try:
            packed = self.live.read([name for _, name in named])
        except StoreUnavailable as error:
            self.on_degraded("store_unavailable", error, queries[0].request_id)
            return viewers, [False] * len(queries), True
        found = [(i, row) for (i, _), row in zip(named, packed, strict=True) if row is not None]
        if found:
            places, known = zip(*found, strict=True)
            viewers[list(places)] = np.frombuffer(b"".join(known), viewers.dtype)
            for i in places:
                unknown[i] = False
        return viewers, unknown, False

    def _stated(self, candidates: PackedRows, queries: Sequence[Query], request_of_row: I64) -> PackedRows:
        """Overwrite candidate fields with the request-time fields that the requests state."""
        declared = self.features.schema.surface.fields["candidate"]
        for b, query in enumerate(queries):
            if query.stated:
                first = int(np.searchsorted(request_of_row, b))
                for place, fields in query.stated.items():
                    for name, value in fields.items():
                        candidates[name][first + place] = encode(declared[name], value)
        return candidates

    async def _scores(
        self, queries: Sequence[Query], matrix: Matrix, request_of_row: I64, store_down: bool
    ) -> tuple[F32, list[str | None]]:
        """Score the rows: (scores `[R]`, NaN where unscored; a failure reason for each query)."""
        scores = np.full(len(request_of_row), np.nan, np.float32)
        failed: list[str | None] = [None] * len(queries)
        by_model: dict[str, list[int]] = {}
        for b, query in enumerate(queries):
            if store_down and query.arm.scorer not in (SHUFFLE, NOOP):
                failed[b] = "store_unavailable"
            elif not query.arm.by_model:
                continue
            elif query.model is None:
                failed[b] = "no_model"
            elif query.candidates:
                by_model.setdefault(query.model, []).append(b)
        # A batch has one version, except while one version replaces another.
        for model, members in by_model.items():
            if len(members) == len(queries):
                mine: slice | I64 = slice(None)
            else:
                mine = np.flatnonzero(np.isin(request_of_row, members))
            try:
                asked = Matrix(matrix.numeric[mine], matrix.category[mine])
                answered = await self.score(model, asked, request_of_row[mine])
                if len(answered) != len(asked.numeric):
                    raise ValueError(f"expected {len(asked.numeric)} scores, got {len(answered)}")
                scores[mine] = answered
            # After any failure of the scorer, the popular order is still available.
            except Exception as error:
                self.on_degraded("scorer_unavailable", error, queries[members[0]].request_id)
                for b in members:
                    failed[b] = "scorer_unavailable"
        return scores, failed


class _Batch(NamedTuple):
    """State of a batch before its rows are ordered; `rows` `[R]` index the candidate table."""

    queries: Sequence[Query]
    request_of_row: I64
    rows: I64
    seen_seq: int
    # Features of all rows; None if only some rows were computed.
    matrix: Matrix | None = None
    stage_ms: Mapping[str, float] = NOTHING_DONE


def _best_known(queries: Sequence[Query], popular: F32, ended: NDArray[np.bool_], owner: I64) -> I64:
    """Return the rows to score, ascending: the most popular candidates that have not ended."""
    popular = np.where(np.isnan(popular), np.float32(-np.inf), popular)
    order = np.lexsort((-popular, ended, owner))
    # Index within the request; `order` keeps each request's rows together.
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    wanted = np.array([query.num_scored for query in queries], np.int64)
    return np.sort(order[place < wanted[owner]])


def _select(
    batch: _Batch,
    popular: F32,
    score: F32,
    ended: NDArray[np.bool_],
    failed: Sequence[str | None],
    unknown_viewer: Sequence[bool],
) -> list[Slate]:
    """Order each query's candidates with one sort: scored, unscored by popularity, then ended.

    Ties keep the given order.
    """
    queries, request_of_row, rows, seen_seq, matrix, stage_ms = batch
    parts = _parts(queries)
    finite = np.isfinite(score)
    score = np.where(finite & ~ended, score, np.float32(np.nan))
    popular = np.where(np.isnan(popular), np.float32(-np.inf), popular)
    for query, part, reason in zip(queries, parts, failed, strict=True):
        if query.arm.scorer == NOOP and reason is None:
            popular[part] = 0.0
        elif query.arm.scorer == SHUFFLE and reason is None:
            popular[part] = np.random.default_rng().random(part.stop - part.start, np.float32)
    # Sort keys above every score: the negated scores are -1 to 0.
    unscored = np.where(ended, np.float32(2.0), np.float32(1.0))
    order = np.lexsort((-popular, np.where(np.isnan(score), unscored, -score), request_of_row))
    all_finite, all_known = finite.all(), rows.all()
    slates = []
    for query, part, reason, is_unknown in zip(queries, parts, failed, unknown_viewer, strict=True):
        by_model = reason is None and query.arm.by_model
        degraded: tuple[str, ...] = () if reason is None else (reason,)
        if by_model and query.num_scored < len(query.candidates):
            degraded = ("overload",)
        if by_model and not all_finite and np.count_nonzero(finite[part]) < query.num_scored:
            degraded = (*degraded, "non_finite_score")
        places, propensity = order[part] - part.start, None
        # Unscored candidates stay last.
        if query.explore and by_model:
            drawn, propensity = draw(score[part][places], np.random.default_rng())
            places = places[drawn]
        unknown = [] if all_known else [query.candidates[i] for i in np.flatnonzero(rows[part] == 0).tolist()]
        slates.append(
            Slate(
                query=query,
                order=places,
                score=score[part],
                rung="fallback" if reason is not None else "partial" if degraded else "full",
                degraded=degraded,
                model=query.model if by_model else None,
                unknown_viewer=is_unknown,
                unknown_candidates=unknown,
                seen_seq=seen_seq,
                matrix=matrix.rows(part) if matrix is not None and query.keep_matrix else None,
                propensity=propensity,
                stage_ms=stage_ms,
            )
        )
    return slates


def _parts(queries: Sequence[Query]) -> list[slice]:
    """Return the slice of each query's rows in the batch."""
    ends = list(accumulate(len(query.candidates) for query in queries))
    return [slice(end - len(query.candidates), end) for query, end in zip(queries, ends, strict=True)]
