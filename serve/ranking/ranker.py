"""The ranking: one function whose lines are the stages, over a batch of requests.

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
from serve.features.slots import I64, Record
from serve.ranking.candidate_table import LiveTable
from serve.ranking.exploration import draw

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Score = Callable[[str, Matrix, I64], Awaitable[F32]]  # a version, its rows and the request of each
NOTHING_DONE = {"features": 0.0, "score": 0.0}


class Query(msgspec.Struct, frozen=True):
    """One admitted request. `model` is the artifact's version that its arm names, None without one."""

    request_id: str
    viewer: str | None
    candidates: Sequence[str]
    now_ms: int
    arm: Arm
    experiment: str | None  # in which the viewer takes part
    model: str | None
    limit: int
    context: Mapping[str, object]
    stated: Mapping[int, Mapping[str, object]]  # request-time fields by the candidate's place
    explain: bool
    traffic: str
    keep_matrix: bool  # to explain it, or to log it
    explore: bool  # whether the order is drawn from the scores
    num_scored: int  # how many candidates the model is to score, at most: under load the best known ones


class Slate(msgspec.Struct, frozen=True):
    """One ranked query: `order` `[C]` places in `candidates`, best first; `score` `[C]` NaN where unscored."""

    query: Query
    order: I64
    score: F32
    rung: str
    degraded: tuple[str, ...]
    model: str | None
    unknown_viewer: bool
    unknown_candidates: list[str]
    seen_seq: int  # the number of the last record that its features contain
    matrix: Matrix | None  # its rows' features, where the query keeps them
    propensity: F64 | None  # `[C]` of each pick given those before it, where the order was drawn
    stage_ms: Mapping[str, float]


@dataclass
class Ranker:
    """What a ranking needs: the live table and its viewers, the features, and a way to score."""

    features: Features
    live: LiveTable
    score: Score
    on_degraded: Callable[[str, Exception, str | None], None] = field(
        default=lambda reason, error, request_id: None
    )
    on_batch: Callable[[int, Mapping[str, float]], None] = field(
        default=lambda num_candidates, stage_ms: None
    )

    async def rank(self, queries: Sequence[Query]) -> list[Slate]:
        """Rank each query: fetch, features, score, select. Never raises for a store or scorer that is down."""
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
        """The popular order at once, from the live table alone: what a query gets that cannot be served."""
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

    def _fetch_viewers(self, queries: Sequence[Query]) -> tuple[Record, list[bool], bool]:
        """`[B]` rows, which viewers have none, and whether the store is down; one read for the batch."""
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

    def _stated(self, candidates: Record, queries: Sequence[Query], request_of_row: I64) -> Record:
        """The candidates' rows with the fields that the requests state themselves."""
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
        """`[R]` scores, NaN where the model did not score, and for each query why it did not, if it should."""
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
        for model, members in by_model.items():  # a batch has one version, but while one replaces another
            if len(members) == len(queries):
                mine: slice | I64 = slice(None)
            else:
                mine = np.flatnonzero(np.isin(request_of_row, members))
            try:
                asked = Matrix(matrix.numeric[mine], matrix.category[mine])
                answered = await self.score(model, asked, request_of_row[mine])
                if len(answered) != len(asked.numeric):
                    raise ValueError(f"asked for {len(asked.numeric)} scores, got {len(answered)}")
                scores[mine] = answered
            except Exception as error:  # whatever befell the scorer, the popular order is within reach
                self.on_degraded("scorer_unavailable", error, queries[members[0]].request_id)
                for b in members:
                    failed[b] = "scorer_unavailable"
        return scores, failed


class _Batch(NamedTuple):
    """What is known of a batch before its rows are ordered: R rows, found in the live table at `rows`."""

    queries: Sequence[Query]
    request_of_row: I64
    rows: I64
    seen_seq: int
    matrix: Matrix | None = None  # of all rows; None where not all were computed
    stage_ms: Mapping[str, float] = NOTHING_DONE


def _best_known(queries: Sequence[Query], popular: F32, ended: NDArray[np.bool_], owner: I64) -> I64:
    """The rows, ascending, that are scored where not all are: each query's most popular, of those not ended."""
    popular = np.where(np.isnan(popular), np.float32(-np.inf), popular)
    order = np.lexsort((-popular, ended, owner))
    place = np.arange(len(owner)) - np.searchsorted(
        owner, owner
    )  # in its request; `order` keeps requests together
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
    """Order each query's candidates: scored, unscored by popularity, ended; ties as given. One sort for all."""
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
    unscored = np.where(ended, np.float32(2.0), np.float32(1.0))  # behind every score, which are -1 to 0
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
        if query.explore and by_model:  # the unscored, which come last, stay there
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
    """Each query's rows in the batch."""
    ends = list(accumulate(len(query.candidates) for query in queries))
    return [slice(end - len(query.candidates), end) for query, end in zip(queries, ends, strict=True)]
