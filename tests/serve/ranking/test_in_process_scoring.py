"""Scoring in the process itself, with a scorer and calls whose times are known."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from serve.contract.errors import ScoringFailed
from serve.contract.logs import SeldomWarning
from serve.features.matrix import Matrix
from serve.model.scorer_cache import timed, untimed
from serve.ranking.in_process_scoring import FEW_ROWS, LAST_CALLS, InProcessScoring

MS_PER_ROW, MS_PER_BATCH = 0.01, 0.2


class Models:
    """Holds version `held`; by its own account a batch takes MS_PER_BATCH and MS_PER_ROW a row."""

    def __init__(self):
        self.sizes = []

    def holds(self, version):
        return version == "held"

    def score_packed(self, version, payload):
        num_rows = len(Matrix.from_bytes(payload).numeric)
        self.sizes.append(num_rows)
        return scored(0.25, num_rows)


class Calls:
    """Deployment that takes `overhead_ms` beside the scoring, or raises `error`."""

    def __init__(self, overhead_ms=10.0, error=None):
        self.overhead_ms, self.error = overhead_ms, error
        self.now_s = 0.0

    async def __call__(self, version, payload):
        num_rows = len(Matrix.from_bytes(payload).numeric)
        if self.error is not None:
            raise self.error
        self.now_s += (self.overhead_ms + MS_PER_BATCH + num_rows * MS_PER_ROW) / 1e3
        return scored(0.75, num_rows)


def scored(score, num_rows):
    return timed(np.full(num_rows, score, np.float32).tobytes(), MS_PER_BATCH + num_rows * MS_PER_ROW)


def in_process_scoring(calls, models=None, may=lambda version: True):
    return InProcessScoring(calls, models or Models(), may, SeldomWarning(), lambda: calls.now_s)


def payload(num_rows):
    return Matrix(np.zeros((num_rows, 2), np.float32), np.zeros((num_rows, 1), np.uint64)).to_bytes()


def score(near, *sizes, version="held"):
    """Return the score of the first row of each batch: 0.25 here, 0.75 there."""

    async def scenario():
        return [untimed(await near(version, payload(n)), n)[0][0] for n in sizes]

    return asyncio.run(scenario())


def test_a_batch_is_scored_here_once_a_call_of_its_size_took_more_than_twice_as_long():
    near = in_process_scoring(Calls())
    # Here 400 rows take 4.2 ms, less than half of a call, and 600 rows take 6.2.
    assert score(near, 400, 400, 300, 600, 600, 600) == [0.75, 0.25, 0.25, 0.75, 0.75, 0.75]


def test_batches_of_one_row_say_nothing_of_larger_ones():
    near = in_process_scoring(Calls())
    assert score(near, *[1] * 20, 400, 400) == [0.75, *[0.25] * 19, 0.75, 0.25]


def test_the_shortest_of_the_last_calls_counts():
    calls = Calls(overhead_ms=1.0)
    near = in_process_scoring(calls)
    score(near, 400)
    calls.overhead_ms = 20.0
    assert score(near, *[400] * (LAST_CALLS - 1)) == [0.75] * (LAST_CALLS - 1)
    assert score(near, 400, 400) == [0.75, 0.25]


@pytest.mark.parametrize(("version", "may"), [("other", True), ("held", False)])
def test_a_version_that_is_not_loaded_here_or_on_trial_is_always_called(version, may):
    models = Models()
    near = in_process_scoring(Calls(), models, lambda version: may)
    assert score(near, 1, 1, 1, version=version) == [0.75] * 3
    assert models.sizes == []


def test_where_the_deployment_is_gone_all_batches_are_scored_here_with_a_warning(caplog):
    near = in_process_scoring(Calls(error=ConnectionError("gone")))
    assert score(near, 1, 1_760) == [0.25, 0.25]
    assert "scored without Scorer: ConnectionError: gone" in caplog.text
    with pytest.raises(ConnectionError):
        score(near, 1, version="other")


def test_an_error_of_the_version_itself_is_not_repeated_here():
    models = Models()
    near = in_process_scoring(Calls(error=ScoringFailed("bad")), models)
    with pytest.raises(ScoringFailed):
        score(near, 1)
    assert models.sizes == []


def score_aside(near, num_rows, version="held"):
    """Return the score of the first row of what no batch waits for."""
    return untimed(asyncio.run(near.aside(version, payload(num_rows))), num_rows)[0][0]


def test_what_no_batch_waits_for_is_scored_here_whatever_its_size_and_the_call_takes():
    calls = Calls(overhead_ms=0.0)
    near = in_process_scoring(calls)
    assert [score_aside(near, num_rows) for num_rows in (1, 4_000)] == [0.25, 0.25]
    assert calls.now_s == 0.0
    # Nothing was learnt from it for batches.
    assert score(near, 4_000) == [0.75]


@pytest.mark.parametrize(("version", "may"), [("other", True), ("held", False)])
def test_what_no_batch_waits_for_is_called_where_the_version_may_not_be_scored_here(version, may):
    models = Models()
    assert score_aside(in_process_scoring(Calls(), models, lambda version: may), 1, version) == 0.75
    with pytest.raises(ConnectionError):
        score_aside(
            in_process_scoring(Calls(error=ConnectionError("gone")), models, lambda version: may), 1, version
        )
    assert models.sizes == []


def test_the_event_loop_goes_on_while_many_rows_are_scored_aside():
    gone_on = threading.Event()

    class Slow(Models):
        def score_packed(self, version, payload):
            assert gone_on.wait(5)
            return super().score_packed(version, payload)

    async def scenario():
        asyncio.get_running_loop().call_later(0.01, gone_on.set)
        await in_process_scoring(Calls(), Slow()).aside("held", payload(FEW_ROWS + 1))

    asyncio.run(scenario())
