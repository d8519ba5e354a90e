"""The client's one retry over the generator's connections."""

from __future__ import annotations

import pytest

from loadtest.generator.retrying import Retrying
from serve.client.reply import PROBLEM
from serve.client.retries import Retries

BARE = (500, "text/html")  # HAProxy's own, for a replica that died with the request


class Scripted:
    """Answers one after the other as told: a status, or an error that is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def answered(self, request):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, kind = answer if isinstance(answer, tuple) else (answer, PROBLEM)
        return status, b"", kind, None

    def exchange(self, request):
        return self.answered(request)[:2]


def retrying(*answers, timeout_s=1.0):
    failures = []
    policy = Retries(random=lambda: 0.0)
    return Retrying(Scripted(*answers), timeout_s, failures.append, policy), failures


def test_a_good_answer_is_no_failure():
    exchanges, failures = retrying(200)
    assert exchanges.exchange(b"")[0] == 200
    assert failures == []


@pytest.mark.parametrize("first", [503, 429, BARE, ConnectionRefusedError()])
def test_what_may_be_retried_is_tried_once_more_and_told(first):
    exchanges, failures = retrying(first, 200)
    assert exchanges.exchange(b"")[0] == 200
    assert len(failures) == 1
    exchanges, failures = retrying(503, 503)
    assert exchanges.exchange(b"")[0] == 503
    assert [failure.kind for failure in failures] == ["HTTP 503"]


def test_what_may_not_be_retried_stands():
    exchanges, failures = retrying(500, 200)
    assert exchanges.exchange(b"")[0] == 500
    exchanges, more = retrying(TimeoutError(), 200, timeout_s=0.0)
    with pytest.raises(TimeoutError):
        exchanges.exchange(b"")
    assert [failure.kind for failure in (*failures, *more)] == ["HTTP 500", "timeout"]


def test_a_second_answer_after_the_time_of_both_is_none():
    exchanges, _ = retrying(503, 200, timeout_s=0.02)

    def slow(request):
        from time import sleep

        sleep(0.03)
        return 200, b""

    exchanges._connections.exchange = slow
    with pytest.raises(TimeoutError):
        exchanges.exchange(b"")
