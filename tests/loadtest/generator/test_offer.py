"""Tests of a load from a separate process, against a stub of the service."""

from __future__ import annotations

import json
import time

import pytest

from loadtest.errors import LoadtestError
from loadtest.generator.offer import OfferedLoad, offered, offering
from loadtest.scenarios.bench import Bench
from loadtest.workload.profiles import Block, load_slo

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]

BODY = json.dumps({"viewer": "ann", "candidates": ["a"]}).encode()


def test_each_block_gets_its_share_of_the_rate(stub):
    requests = offered(OfferedLoad(stub.url, [BODY], 1, 200.0, [Block(0.5), Block(0.5, 2.0, 2.0)])).requests
    assert requests.ok.all()
    assert [int((requests.at_s < 0.5).sum()), len(requests.ok)] == [100, 300]
    assert requests.full.all()
    assert requests.named_counts() == {"full": 300}


def test_first_tries_that_failed_are_reported_beside_the_final_outcomes(stub):
    stub.status, stub.share_bad = 503, 0.1
    found = offered(OfferedLoad(stub.url, [BODY], 1, 100.0, [Block(1.0)], retry=True, timeout_s=5.0))
    assert len(found.failed) >= 10
    assert {failure.kind for failure in found.failed} == {"HTTP 503"}
    assert len(found.requests.ok) == 100
    assert len(stub.requests) > 100


def test_a_step_of_a_search_counts_what_comes_after_its_warm_up(stub):
    lines = []
    bench = Bench(None, None, 1, load_slo(), [BODY], lines.append, 0.0)
    step = bench.step(stub.url, 100.0, 2.0, 0.5, "search")
    # The half second counts the answers that arrive in it. With those of the warm-up, it would be
    # 500; a machine that halts for some tenths of a second only moves answers across its ends.
    assert step.rate_rps == 100.0
    assert 0.0 < step.numbers["rps"] < 300.0
    assert (step.numbers["errors"], step.numbers["full_share"]) == (0, 1.0)
    assert step.kept_up
    assert len(lines) == 1


def test_a_closed_loop_sends_the_next_request_when_an_answer_is_complete(stub):
    stub.wait_s = 0.1
    requests = offered(OfferedLoad(stub.url, [BODY], 1, 0.0, [Block(1.0)], connections=8)).requests
    assert requests.ok.all()
    assert 40 < len(requests.ok) <= 88
    assert stub.num_connections == 8
    assert requests.at_s.max() < 1.0
    assert requests.latency_ms.min() > 99.0
    assert requests.late_ms.max() < 100.0


def test_a_closed_loop_goes_on_after_failures_and_tells_what_it_sent_when_it_is_stopped(stub):
    stub.status, stub.share_bad, stub.wait_s = 503, 0.5, 0.01
    with offering(OfferedLoad(stub.url, [BODY], 1, 0.0, [Block(60.0)], connections=2)) as offer:
        time.sleep(0.5)
        offer.stop()
        requests = offer.result().requests
    assert requests.named_counts()["HTTP 503"] >= 10
    assert len(requests.ok) < 1_000


def test_a_load_that_is_stopped_tells_what_it_sent(stub):
    with offering(OfferedLoad(stub.url, [BODY], 1, 100.0, [Block(60.0)])) as offer:
        offer.stop()
        assert len(offer.result().requests.ok) < 100


def test_a_generator_that_cannot_start_says_why():
    with pytest.raises(LoadtestError, match=r"did not start:[\s\S]*--url nowhere"):
        offered(OfferedLoad("nowhere", [BODY], 1, 1.0, [Block(1.0)]))


def test_a_generator_that_fails_says_why_although_it_shows_progress(stub):
    with pytest.raises(LoadtestError, match=r"failed:[\s\S]*TypeError"):
        offered(OfferedLoad(stub.url, [BODY], 1, None, [Block(1.0)], warmup_s=0.0))
