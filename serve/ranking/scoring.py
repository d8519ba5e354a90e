"""Score: ask each query's model version for the predictions of its rows.

`CallModel` leads to the arithmetic in `serve.model.graph`. It runs in this process or in the
deployment `Scorer`, as `in_process_scoring` decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from serve.features.matrix import Matrix
from serve.features.slots import F32, I64
from serve.ranking.hydration import HydratedBatch, OnDegraded
from serve.ranking.order import UNKNOWN

# (version, rows, request of each row) → shares `[R, O]`.
CallModel = Callable[[str, Matrix, I64], Awaitable[F32]]


async def model_shares(
    batch: HydratedBatch, rows: slice | I64, matrix: Matrix, call_model: CallModel, on_degraded: OnDegraded
) -> F32:
    """Return the shares `[R, O]` of a batch, NaN where unscored; `matrix` is that of `rows`.

    O is the largest number of outcomes that a version of the batch predicts. Versions with fewer
    outcomes have zeros in the last columns. Unknown candidates are not scored, because training has
    no rows like theirs. Queries whose version cannot score them are marked in `batch.failed`; the
    function never raises.
    """
    request_of_row = batch.request_of_row[rows]
    num_outcomes = max(len(query.weighing.weights) for query in batch.queries)
    shares = np.full((len(request_of_row), num_outcomes), np.nan, np.float32)
    # A batch has one version, except while one version replaces another.
    for version, members in _by_version(batch).items():
        mine: slice | I64 = slice(None)
        if len(members) < len(batch.queries) or batch.unknown.any():
            known = batch.standing[rows] != UNKNOWN
            mine = np.flatnonzero(known & np.isin(request_of_row, members))
        asked = matrix.rows(mine)
        if not len(asked.numeric):
            continue
        try:
            answered = await call_model(version, asked, request_of_row[mine])
            expected = len(asked.numeric), len(batch.queries[members[0]].weighing.weights)
            if answered.shape != expected:
                raise ValueError(f"expected scores of the shape {expected}, got {answered.shape}")
            shares[mine, : expected[1]] = answered
            shares[mine, expected[1] :] = 0.0
        # Whatever the failure of the scorer is, the popular order is still available.
        except Exception as error:
            on_degraded("scorer_unavailable", error, batch.queries[members[0]].request_id)
            for b in members:
                batch.failed[b] = "scorer_unavailable"
    everywhere = np.full((len(batch.numbers), num_outcomes), np.nan, np.float32)
    everywhere[rows] = shares
    return everywhere


def _by_version(batch: HydratedBatch) -> dict[str, list[int]]:
    """Return by version the indices of the queries to score; mark queries without one as failed."""
    members: dict[str, list[int]] = {}
    for b, query in enumerate(batch.queries):
        if batch.failed[b] is not None or not query.arm.by_model:
            continue
        if query.model is None:
            batch.failed[b] = "no_model"
        elif query.candidates:
            members.setdefault(query.model, []).append(b)
    return members
