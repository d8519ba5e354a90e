"""Tests of the numbers and the verdict of an overload, on synthetic loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from offers import BROKEN, FALLBACK, REFUSED, Offering

from loadtest.errors import LoadtestError
from loadtest.report.series import run_line, write_overload
from loadtest.scenarios.overload import (
    OverloadPlan,
    describe,
    disable_load_shedding,
    judge,
    read_times,
    verdict_of,
)
from loadtest.workload.profiles import load_slo
from serve.config.settings import UserConfig

PLAN = OverloadPlan(seconds=10.0, before_s=2.0, after_s=8.0)
SLO = load_slo()
KNEE_RPS = 100.0
CLUSTER = Path(__file__).parents[3] / "cluster.yaml"


def found(offering, times=2.0):
    return describe(offering.requests, times, KNEE_RPS, 100.0, PLAN, SLO)


def overloaded():
    """Twice the knee: half is answered, three quarters of that in full, the rest is refused."""
    offering = Offering(20, rate_rps=200).between(2, 12, REFUSED, latency_ms=2.0, every=2)
    return offering.between(4, 9, FALLBACK, every=2)


def test_goodput_is_told_by_rung_and_as_a_share_of_the_knee():
    offering = Offering(20, rate_rps=200).between(2, 12, REFUSED, latency_ms=2.0, every=2)
    offering.between(2, 12, FALLBACK, every=4)
    numbers = found(offering)
    assert numbers["goodput_by_rung_rps"] == {"full": 100.0, "fallback": 50.0}
    assert numbers["goodput_share"] == 1.5
    assert (numbers["refused"], numbers["refused_p99_ms"]) == (500, 2.0)
    assert judge(numbers, SLO) == ("held", [])


def test_an_answer_after_its_deadline_is_no_goodput():
    numbers = found(Offering(20, rate_rps=200).between(2, 12, latency_ms=100.5))
    assert numbers["goodput_rps"] == 0
    assert numbers["answers_late"] == numbers["answers"] == 2000
    verdict, reasons = judge(numbers, SLO)
    assert verdict == "not held"
    assert reasons[0] == "goodput is 0.0% of the knee, but at least 90% are needed"
    assert "p99 of answers is 100.5 ms" in reasons[1]


@pytest.mark.parametrize(
    ("times", "every", "verdict"), [(2.0, 5, "not held"), (3.0, 5, "held"), (3.0, 4, "not held")]
)
def test_less_is_needed_the_more_is_offered(times, every, verdict):
    offering = Offering(20, rate_rps=100).between(2, 12, REFUSED, every=every)
    if every == 4:
        offering.between(2, 4, REFUSED)
    assert judge(found(offering, times), SLO)[0] == verdict


def test_a_request_that_fails_without_being_refused_is_not_allowed():
    numbers = found(overloaded().between(5, 5.01, BROKEN))
    assert numbers["http_5xx"] == 2
    assert judge(numbers, SLO) == ("not held", ["requests failed without a refusal: 2 HTTP 500"])


def test_a_late_generator_says_nothing_of_the_service():
    numbers = found(overloaded().between(2, 12, late_ms=30.0))
    verdict, reasons = judge(numbers, SLO)
    assert verdict == "void"
    assert "more than 30.0 ms after" in reasons[0]


@pytest.mark.parametrize(
    ("until_s", "back_s", "verdict"), [(12, 0, "held"), (15, 3, "held"), (18, None, "not held")]
)
def test_it_must_be_normal_again_soon(until_s, back_s, verdict):
    numbers = found(overloaded().between(12, until_s, FALLBACK))
    assert numbers["back_s"] == back_s
    assert judge(numbers, SLO)[0] == verdict


def test_refusals_that_take_long_in_the_replica_are_not_allowed():
    numbers = found(overloaded()) | {"refused_in_replica_p99_ms": 15.0}
    assert judge(numbers, SLO)[1] == ["the p99 of refusals in the replica is 15 ms (limit 10 ms)"]


def test_times_are_numbers_above_one():
    assert read_times("2,3.5") == [2.0, 3.5]
    for given in ("", "2,x", "1", "20"):
        with pytest.raises(LoadtestError, match="--times"):
            read_times(given)


def test_the_control_is_the_shipped_file_without_load_shedding():
    document = yaml.safe_load(CLUSTER.read_text())
    disable_load_shedding(document)
    deployments = document["applications"][0]["deployments"]
    knobs = next(one["user_config"] for one in deployments if one["name"] == "FeatureFetch")
    assert UserConfig.from_mapping(knobs).ladder is False


@pytest.mark.parametrize(
    ("control", "verdict"),
    [
        ({"run": True, "verdict": "not held"}, "held"),
        ({"run": True, "verdict": "held"}, "not held"),
        ({"run": False}, "void"),
    ],
)
def test_what_holds_is_held_against_a_control_that_must_not(control, verdict):
    assert verdict_of([{"verdict": "held"}], control) == verdict
    assert verdict_of([{"verdict": "not held"}], control) == "not held"


def test_a_line_opens_with_multiple_and_verdict_and_names_what_did_not_happen():
    numbers = found(overloaded())
    assert run_line(numbers | {"verdict": "held"}) == (
        "  2x: held; goodput 150.0% of the knee (100 full, 50 fallback /s), p99 10.0 ms, 500 refused (p99 2.0 ms), "
        "none failed; back to normal after 0 s; generator late 0.5 ms"
    )
    line = run_line(found(Offering(20, rate_rps=200).between(2, 20, BROKEN)) | {"verdict": "not held"})
    assert line.startswith("  2x: not held; goodput 0.0% of the knee (nothing /s), p99 not reached")
    assert "2000 HTTP 500; not back to normal;" in line


def test_the_page_marks_the_control_alone(tmp_path):
    run = found(overloaded()) | {"verdict": "held", "reasons": []}
    report = {"verdict": "void", "knee_rps": KNEE_RPS, "deadline_ms": 100.0, "machine": {}, "runs": [run]}
    for number, control in enumerate(({"run": True, **run}, {"run": False, "reason": "no core"})):
        write_overload(tmp_path / str(number), report | {"control": control}, {}, SLO)
        page = (tmp_path / str(number) / "report.html").read_text()
        assert ("<td>2×</td>" in page, "<td>2×, no load shedding</td>" in page) == (True, number == 0)
