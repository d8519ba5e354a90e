"""One arm in this process, which ranks for simulated viewers as a service does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.contract.rankings import Ranked, RankRequest, candidate_ids
from serve.contract.records import ClientRecord
from serve.features.matrix import Features
from serve.features.rows import State
from serve.features.slots import F32, U64
from serve.ingest.apply import RecordApplier
from serve.log.events import Exposure

# Numeric features and categories of R rows → their scores `[R]`.
Score = Callable[[F32, U64], NDArray[np.floating]]


class Answer(NamedTuple):
    """The fields of `RankAnswer` that a simulated viewer needs."""

    ranking: list[Ranked]
    arm: str
    rung: str


class InProcessArm:
    """One arm for all viewers with its own state: features and order of the service, without HTTP.

    `score` is None for the popular arm.
    """

    def __init__(self, arm: str, state: State, score: Score | None) -> None:
        self._arm = arm
        self._state = state
        self._changes = RecordApplier(state)
        self._features = Features(state.schema)
        self._score = score

    def rank(self, request: RankRequest) -> Answer:
        """Rank as `serve.ranking.ranker` does, and count the exposure as impressions."""
        self._changes.observe()
        # These are the rows to store, and there is no store.
        self._changes.viewers.clear()
        self._changes.candidates.clear()
        ids, now_ms = candidate_ids(request), request.now_ms or 0
        order = self._order(request, ids, now_ms)
        shown = [ids[place] for place in order]
        self._changes.apply(
            Exposure(request.request_id or "", now_ms, request.viewer, shown, b"", "", self._arm, "full", 0)
        )
        ranking = [Ranked(name, None, position) for position, name in enumerate(shown, 1)]
        return Answer(ranking, self._arm, "full")

    def send(self, records: Sequence[ClientRecord]) -> None:
        """Apply the records."""
        for record in records:
            self._changes.apply(record)

    def _order(self, request: RankRequest, ids: list[str], now_ms: int) -> list[int]:
        """Order by score if there is one, then by popularity, then as given; best first."""
        state = self._state
        candidates = state.candidates.table.take(state.candidates.find(ids))
        context = state.schema.context_rows([request.context])
        owner, times_ms = np.zeros(len(ids), np.int64), np.array([now_ms])
        popular = self._features.popularity(candidates, context, owner, times_ms)
        score: NDArray[np.floating] = np.zeros(len(ids))
        if self._score is not None:
            viewer = state.viewers.table.take(state.viewers.find([request.viewer or ""]))
            matrix = self._features.compute(viewer, candidates, context, owner, times_ms)
            score = self._score(matrix.numeric, matrix.category)
        order: list[int] = np.lexsort((-np.nan_to_num(popular, nan=-np.inf), -score)).tolist()
        return order
