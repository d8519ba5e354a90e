"""Tests of the verdicts at the limits: held, not held, void."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.measure.measure import Measurement
from loadtest.measure.verdict import EXIT_CODES, judge, overall
from loadtest.workload.profiles import load_slo

SLO = load_slo()
GOOD = Measurement(
    requests=1000,
    rps=900.0,
    candidates_per_s=49_500.0,
    full_share=0.999,
    p50_ms=8.0,
    p90_ms=50.0,
    p99_ms=100.0,
    max_ms=900.0,
    errors=0,
    error_kinds={},
    rungs={"full": 999, "fallback": 1},
    heuristic=0,
    generator_late_ms_p99=10.0,
    seconds=60.0,
)


def test_a_run_at_every_limit_holds():
    assert judge(GOOD, SLO) == ("held", [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p90_ms": 50.001}, "p90 is 50.001 ms, above 50 ms"),
        ({"p99_ms": 100.001}, "p99 is 100.001 ms, above 100 ms"),
        ({"p99_ms": None}, "p99: fewer than 99 % of the requests were answered"),
        ({"errors": 1, "error_kinds": {"HTTP 503": 1}}, "1 of 1,000 requests failed (1 HTTP 503)"),
        ({"errors": 1, "error_kinds": {"not sent": 1}}, "1 of 1,000 requests failed (1 not sent)"),
        ({"full_share": 0.998, "rungs": {"full": 998, "fallback": 2}}, "99.800% of the answers were full"),
        ({"full_share": 0.0, "heuristic": 1000}, "1000 full answers came from a heuristic"),
        ({"full_share": 0.0, "rungs": {}}, "no answers"),
    ],
)
def test_anything_beyond_a_limit_does_not_hold_and_says_what(change, message):
    verdict, reasons = judge(replace(GOOD, **change), SLO)
    assert verdict == "not held"
    assert len(reasons) == 1
    assert message in reasons[0]


def test_errors_up_to_the_allowed_share_hold():
    allowed = replace(SLO, max_error_share=0.01)
    assert judge(replace(GOOD, errors=10), allowed)[0] == "held"
    assert judge(replace(GOOD, errors=11), allowed)[0] == "not held"


def test_a_few_heuristic_answers_within_the_share_hold():
    assert judge(replace(GOOD, heuristic=1), SLO)[0] == "held"


def test_a_late_generator_voids_the_run_whatever_else_there_is():
    verdict, reasons = judge(replace(GOOD, generator_late_ms_p99=10.1, p99_ms=200.0), SLO)
    assert verdict == "void"
    assert "more than 10.1 ms after they were due" in reasons[0]
    assert "p99 is 200" in reasons[1]


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (["held", "held"], "held"),
        (["held", "void"], "void"),
        # A part that is void does not excuse another one.
        (["not held", "void"], "not held"),
    ],
)
def test_a_late_generator_voids_only_its_own_part(parts, verdict):
    assert overall(parts) == verdict


def test_exit_codes_are_those_of_every_command():
    assert EXIT_CODES == {"held": 0, "not held": 1, "void": 2}
