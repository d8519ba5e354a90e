"""Scoring in the process itself, with a scorer and calls whose times are known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from serve.contract.errors import ScoringFailed
from serve.features.matrix import Matrix
from serve.model.scorer_cache import timed, untimed
from serve.ranking.near_scoring import LAST_CALLS, NearScoring

MS_PER_ROW = 0.01


class Models:
    """Holds version `held`; a row takes MS_PER_ROW by its own account."""

    def __init__(self):
        self.sizes = []

    def holds(self, version):
        return version == "held"

    def score(self, version, payload):
        num_rows = len(Matrix.from_bytes(payload).numeric)
        self.sizes.append(num_rows)
        return timed(np.full(num_rows, 0.25, np.float32).tobytes(), num_rows * MS_PER_ROW)


class Calls:
    """Deployment that takes `overhead_ms` beside the scoring, or raises `error`."""

    def __init__(self, overhead_ms=4.0, error=None):
        self.overhead_ms, self.error = overhead_ms, error
        self.sizes = []
        self.now_s = 0.0

    async def __call__(self, version, payload):
        num_rows = len(Matrix.from_bytes(payload).numeric)
        self.sizes.append(num_rows)
        if self.error is not None:
            raise self.error
        self.now_s += self.overhead_ms / 1e3
        return timed(np.full(num_rows, 0.75, np.float32).tobytes(), 0.0)


def near_scoring(calls):
    return NearScoring(calls, Models(), lambda: calls.now_s)


def payload(num_rows):
    return Matrix(np.zeros((num_rows, 2), np.float32), np.zeros((num_rows, 1), np.uint64)).to_bytes()


def score(near, *sizes, version="held"):
    """Return the score of the first row of each batch: 0.25 here, 0.75 there."""

    async def scenario():
        return [untimed(await near(version, payload(n)), n)[0][0] for n in sizes]

    return asyncio.run(scenario())


def test_small_batches_are_scored_here_and_large_ones_there_once_a_call_was_timed():
    calls = Calls()
    near = near_scoring(calls)
    # Here 200 rows take 2 ms, half of a call.
    assert score(near, 10, 10, 10, 150, 400, 10) == [0.25, 0.75, 0.25, 0.25, 0.75, 0.25]


def test_the_shortest_of_the_last_calls_counts():
    calls = Calls(overhead_ms=1.0)
    near = near_scoring(calls)
    score(near, 10, 400)
    calls.overhead_ms = 20.0
    assert score(near, *[400] * (LAST_CALLS - 1), 150) == [0.75] * LAST_CALLS
    assert score(near, 400, 1_100) == [0.25, 0.75]


def test_a_version_that_is_not_loaded_here_is_always_called():
    models, calls = Models(), Calls(overhead_ms=0.0)
    assert score(NearScoring(calls, models), 1, 1, 1, version="other") == [0.75] * 3
    assert models.sizes == []


def test_where_the_deployment_is_gone_all_batches_are_scored_here():
    near = NearScoring(Calls(error=ConnectionError("gone")), Models())
    assert score(near, 1, 1_760) == [0.25, 0.25]
    with pytest.raises(ConnectionError):
        score(near, 1, version="other")


def test_an_error_of_the_version_itself_is_not_repeated_here():
    models = Models()
    near = NearScoring(Calls(error=ScoringFailed("bad")), models)
    score(near, 1)
    with pytest.raises(ScoringFailed):
        score(near, 1)
    assert models.sizes == [1]
