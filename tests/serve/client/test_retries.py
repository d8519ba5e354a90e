import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.client.retries import (
    BUDGET,
    FLOOR_PER_S,
    INITIAL_TOKENS,
    JITTER_S,
    MAX_TOKENS,
    MIN_LEFT_S,
    Retries,
)


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def retries(random=lambda: 0.5, clock=None):
    return Retries(random=random, clock=clock or Clock())


@pytest.mark.parametrize("status", [None, 429, 503])
def test_what_the_service_did_not_do_is_tried_once_more_after_a_drawn_wait(status):
    assert retries(random=lambda: 0.0).delay_s(status, 1.0) == 0.0
    assert retries(random=lambda: 0.5).delay_s(status, 1.0) == pytest.approx(JITTER_S / 2)


def test_clients_that_seed_alike_do_not_retry_at_the_same_time():
    waits = set()
    for _ in range(2):
        random.seed(1)
        waits.add(Retries().delay_s(503, 1.0))
    assert len(waits) == 2


@pytest.mark.parametrize("status", [200, 400, 404, 408, 413, 422, 500, 502, 504])
def test_any_other_answer_stands(status):
    assert retries().delay_s(status, 1.0) is None


def test_retry_after_is_obeyed_or_nothing_is_sent():
    assert retries(random=lambda: 0.0).delay_s(429, 5.0, 1.0) == 1.0
    assert retries(random=lambda: 0.0).delay_s(503, 0.25, 1.0) is None
    assert retries().delay_s(503, 60.0, math.inf) is None


def test_a_spent_budget_grows_again_with_requests_and_with_time():
    clock = Clock()
    policy = retries(clock=clock)
    made = sum(policy.delay_s(503, 1.0) is not None for _ in range(50))
    assert made == INITIAL_TOKENS
    # Ten tenths may be less than one in floats; eleven are not.
    for _ in range(11):
        policy.sent()
    assert policy.delay_s(503, 1.0) is not None
    assert policy.delay_s(503, 1.0) is None
    clock.now_s += 1.0 / FLOOR_PER_S
    assert policy.delay_s(503, 1.0) is not None
    assert policy.delay_s(503, 1.0) is None


def test_a_retry_that_is_not_made_costs_nothing():
    policy = retries()
    for _ in range(50):
        assert policy.delay_s(503, MIN_LEFT_S / 2) is None
        assert policy.delay_s(500, 1.0) is None
    assert policy.delay_s(503, 1.0) is not None


seconds = st.floats(0.0, 2.0)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), seconds),
        st.tuples(st.just("send"), st.integers(1, 500)),
        st.tuples(st.just("fail"), st.sampled_from([None, 429, 503, 500]), st.floats(-1.0, 2.0), seconds),
    ),
    max_size=60,
)


def holds_its_bounds(drawn, steps):
    """Retries stay within the budget and the deadline, and never precede `Retry-After`."""
    clock, num_sent, num_retries = Clock(), 0, 0
    policy = retries(lambda: drawn, clock)
    for kind, *details in steps:
        if kind == "wait":
            clock.now_s += details[0]
        elif kind == "send":
            num_sent += details[0]
            for _ in range(details[0]):
                policy.sent()
        else:
            status, left_s, retry_after_s = details
            delay_s = policy.delay_s(status, left_s, retry_after_s)
            if delay_s is not None:
                num_retries += 1
                assert status != 500
                assert retry_after_s <= delay_s <= left_s - MIN_LEFT_S + 1e-9
                assert delay_s <= retry_after_s + JITTER_S
        assert num_retries <= INITIAL_TOKENS + BUDGET * num_sent + FLOOR_PER_S * clock.now_s + 1e-6


anything = given(st.floats(0.0, 1.0, exclude_max=True), steps)
test_no_history_breaks_the_bounds = settings(max_examples=30, deadline=None)(anything(holds_its_bounds))
test_no_long_history_does = pytest.mark.proof(
    pytest.mark.integration(
        pytest.mark.no_ray(settings(max_examples=2_000, deadline=None)(anything(holds_its_bounds)))
    )
)


def test_what_is_saved_is_bounded():
    policy = retries()
    for _ in range(10_000):
        policy.sent()
    assert sum(policy.delay_s(None, 1.0) is not None for _ in range(500)) == MAX_TOKENS
