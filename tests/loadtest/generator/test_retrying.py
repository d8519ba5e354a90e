"""Tests of the client's one retry over the generator's connections."""

from __future__ import annotations

import time

import pytest

from loadtest.generator.connections import Retrying
from serve.client.reply import PROBLEM, Reply
from serve.client.retries import Retries

# HAProxy's own answer when a replica dies during the request.
BARE = (500, "text/html")


class Late(int):
    """Status that comes after 30 ms."""


class Scripted:
    """Connections with scripted answers: a status, or an error to raise."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def exchange(self, request):
        answer = self.answers.pop(0)
        if isinstance(answer, Late):
            time.sleep(0.03)
        if isinstance(answer, Exception):
            raise answer
        status, kind = answer if isinstance(answer, tuple) else (answer, PROBLEM)
        return Reply(status, b"", kind)


def retrying(*answers, timeout_s=1.0):
    failures = []
    policy = Retries(random=lambda: 0.0)
    return Retrying(Scripted(*answers), timeout_s, failures.append, policy), failures


def test_a_good_answer_is_no_failure():
    transport, failures = retrying(200)
    assert transport.exchange(b"")[0] == 200
    assert failures == []


@pytest.mark.parametrize("first", [503, 429, BARE, ConnectionRefusedError()])
def test_what_may_be_retried_is_tried_once_more_and_told(first):
    transport, failures = retrying(first, 200)
    assert transport.exchange(b"")[0] == 200
    assert len(failures) == 1
    transport, failures = retrying(503, 503)
    assert transport.exchange(b"")[0] == 503
    assert [failure.kind for failure in failures] == ["HTTP 503"]


def test_what_may_not_be_retried_stands():
    transport, failures = retrying(500, 200)
    assert transport.exchange(b"")[0] == 500
    transport, more = retrying(TimeoutError(), 200, timeout_s=0.0)
    with pytest.raises(TimeoutError):
        transport.exchange(b"")
    assert [failure.kind for failure in (*failures, *more)] == ["HTTP 500", "timeout"]


def test_a_second_answer_after_the_time_of_both_is_none():
    transport, _ = retrying(503, Late(200), timeout_s=0.02)
    with pytest.raises(TimeoutError):
        transport.exchange(b"")
