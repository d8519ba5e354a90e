"""Tests of the Poisson arrival times, and of the limit on open requests."""

from __future__ import annotations

from collections import Counter
from itertools import repeat

import gevent
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loadtest.generator import dispatcher
from loadtest.generator.dispatcher import Dispatcher, arrivals
from loadtest.measure.service import Outcome
from loadtest.workload.profiles import Block
from serve.client.reply import Reply


def schedule(rate, blocks, seed=1):
    pieces = [block if isinstance(block, Block) else Block(block) for block in blocks]
    return np.array(list(arrivals(rate, pieces, np.random.default_rng(seed))))


@given(st.floats(0.5, 300), st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_each_block_gets_its_expected_number_in_ascending_order(rate, blocks, seed):
    times = schedule(rate, blocks, seed)
    assert np.all(np.diff(times) >= 0)
    edges = np.concatenate([[0.0], np.cumsum(blocks)])
    assert len(times) == sum(round(rate * block) for block in blocks)
    assert np.all((times >= 0) & (times <= edges[-1]))


def test_the_warm_up_is_followed_by_exactly_the_target_rate():
    times = schedule(900, (10.0, 60.0))
    assert np.sum(times >= 10) == 54_000


def test_gaps_are_exponential_not_even():
    gaps = np.diff(schedule(1000, (60.0,)))
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert abs(np.quantile(gaps, 0.5) / gaps.mean() - np.log(2)) < 0.02


def test_the_same_seed_gives_the_same_times_and_another_seed_others():
    assert np.array_equal(schedule(50, (5.0,), 7), schedule(50, (5.0,), 7))
    assert not np.array_equal(schedule(50, (5.0,), 7), schedule(50, (5.0,), 8))


def test_a_rising_block_sends_what_its_line_integrates_to():
    times = schedule(1000, (Block(10.0, 0.5, 1.5),))
    assert len(times) == 10_000
    for begins, ends in ((0, 2), (4, 6), (8, 10)):
        expected = 1000 * (ends - begins) * (0.5 + (begins + ends) / 20)
        assert abs(np.sum((times >= begins) & (times < ends)) / expected - 1) < 0.05


def test_a_falling_block_to_nothing_thins_out():
    times = schedule(100, (Block(10.0, 2.0, 0.0),))
    assert np.all(np.diff(times) >= 0)
    assert times[-1] <= 10
    # The first half of the triangle has three quarters of its area.
    assert abs(np.sum(times < 5) - 750) < 80


def test_what_the_limit_on_open_requests_keeps_back_is_counted(monkeypatch):
    monkeypatch.setattr(dispatcher, "MAX_IN_FLIGHT", 10)
    ended = []

    def exchange(request):
        gevent.sleep(0.2)
        return Reply(200, request, "", None)

    read = lambda status, body: (Outcome("full", ok=True, full=True), 1)  # noqa: E731
    Dispatcher(exchange, read, ended.append).run(np.linspace(0, 0.05, 50).tolist(), repeat(b""))
    assert Counter(one.outcome.name for one in ended) == {"full": 10, "not sent": 40}
