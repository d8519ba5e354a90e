"""Tests of the numbers and the verdict of an overload, on synthetic loads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loadtest.errors import LoadtestError
from loadtest.measure.timeline import timeline
from loadtest.report.overload import overload_findings, run_line, write_overload
from loadtest.scenarios import overload
from loadtest.scenarios.overload import control_of, offer_load, read_times, verdict_of, without_load_shedding
from loadtest.scenarios.overload_verdict import Overload, judged
from loadtest.workload.profiles import load_slo
from serve.operate.status.scrape import parse
from tests.support.load_results import BROKEN, FALLBACK, REFUSED, Offering

# 20 s of overload, from second 2.
PLAN = {"seconds": 20.0, "begins_s": 2.0, "after_s": 8.0}
SLO = load_slo()
KNEE_RPS = 100.0


def found(offering, times=2.0, knee_rps=KNEE_RPS, **more):
    return judged(Overload(times, **PLAN), offering.requests, knee_rps, 100.0, SLO, more)


def reasons(offering, times=2.0, knee_rps=KNEE_RPS, **more):
    return found(offering, times, knee_rps, **more)["reasons"]


def overloaded(rate_rps=200):
    """Load of 30 s with an overload; half is scored, half gets the popular order."""
    return Offering(30, rate_rps=rate_rps).between(2, 22, FALLBACK, every=2)


def test_goodput_is_told_by_rung_and_as_a_share_of_the_knee():
    offering = Offering(30, rate_rps=200).between(2, 22, REFUSED, latency_ms=2.0, every=2)
    offering.between(2, 22, FALLBACK, every=4)
    numbers = found(offering)
    assert numbers["goodput_by_rung_rps"] == {"full": 100.0, "fallback": 50.0}
    assert (numbers["goodput_share"], numbers["full_of_knee"], numbers["full_share"]) == (1.5, 1.0, 0.5)
    assert (numbers["refused"], numbers["refused_p99_ms"], numbers["refused_share"]) == (1000, 2.0, 0.25)
    assert numbers["verdict"] == "held"


def test_an_answer_after_its_deadline_is_no_goodput():
    numbers = found(Offering(30, rate_rps=200).between(2, 22, latency_ms=100.5))
    assert numbers["goodput_share"] == 0
    assert numbers["reasons"] == [
        "answers of any rung as a share of the knee: 0.0% (at least 120.0%)",
        "the p99 of the answers is 100.5 ms (limit 100 ms)",
    ]


@pytest.mark.parametrize(
    ("times", "least"), [(1.0, 0.75), (1.2, 0.75), (1.5, 0.5), (2.0, 0.5), (2.5, 0.3), (3.0, 0.3), (8.0, 0.3)]
)
def test_fewer_full_answers_are_needed_the_more_is_offered(times, least):
    """100 of 200 requests/s get full answers, which are the least share of a knee or just less."""
    for knee_rps, holds in ((100 / least - 1, True), (100 / least + 1, False)):
        broken = [
            line
            for line in reasons(overloaded(), times, knee_rps)
            if "full answers as a share of the knee" in line
        ]
        assert bool(broken) is not holds
    assert broken[0].endswith(f"(at least {least:.1%})")


@pytest.mark.parametrize(("times", "every", "held"), [(0.9, 201, True), (0.9, 199, False), (1.0, 199, True)])
def test_below_the_knee_nearly_all_answers_are_full(times, every, held):
    offering = Offering(30, rate_rps=100).between(2, 22, FALLBACK, every=every)
    if every == 199:
        offering.between(2, 2.02, FALLBACK)
    broken = reasons(offering, times)
    assert bool(broken) is not held
    assert held or broken == ["full answers as a share of the requests: 99.4% (at least 99.5%)"]


@pytest.mark.parametrize(
    ("times", "rate_rps", "held"), [(2.0, 120, True), (2.0, 119, False), (1.9, 119, True), (3.0, 119, False)]
)
def test_from_twice_the_knee_on_more_is_answered_than_the_knee(times, rate_rps, held):
    broken = reasons(overloaded(rate_rps), times)
    assert broken == (
        [] if held else ["answers of any rung as a share of the knee: 119.0% (at least 120.0%)"]
    )


@pytest.mark.parametrize(("times", "every", "held"), [(1.2, 20, True), (1.2, 19, False), (1.3, 19, True)])
def test_little_is_refused_slightly_above_the_knee(times, every, held):
    broken = reasons(Offering(30, rate_rps=100).between(2, 22, REFUSED, every=every), times)
    assert broken == ([] if held else ["refusals as a share of the requests: 5.3% (at most 5.0%)"])


@pytest.mark.parametrize(
    ("weak_s", "reason"),
    [
        ([4], None),
        ([4, 8], "seconds below half of the mean rate of full answers: 10.0% (at most 5.0%)"),
        ([4, 5], "two seconds in a row are below half of the mean rate of full answers"),
    ],
)
def test_full_answers_do_not_come_and_go(weak_s, reason):
    offering = overloaded()
    for second in weak_s:
        # 20 of 100 full answers are left.
        offering.between(second, second + 0.8, FALLBACK)
    broken = reasons(offering)
    assert broken[:1] == ([reason] if reason else [])
    assert found(offering)["weak_seconds"] == len(weak_s)


def test_a_request_that_fails_without_being_refused_is_not_allowed():
    numbers = found(overloaded().between(5, 5.01, BROKEN))
    assert numbers["reasons"] == ["requests failed otherwise than by a refusal: 2 HTTP 500"]


def test_seconds_with_a_late_generator_do_not_count():
    """Two of twenty are bad in every way."""
    offering = overloaded().between(5, 7, BROKEN, late_ms=30.0)
    numbers = found(offering)
    assert (numbers["seconds"], numbers["seconds_late"], numbers["offered_rps"]) == (20, 2, 200)
    assert numbers["verdict"] == "held"


@pytest.mark.parametrize("late_s", [3, 20])
def test_a_generator_that_is_often_late_says_nothing_of_the_service(late_s):
    late = found(overloaded().between(2, 2 + late_s, late_ms=30.0))
    assert late["verdict"] == "void"
    assert late["reasons"][0] == f"the load generator was late in {late_s} of 20 seconds"


@pytest.mark.parametrize(
    ("until_s", "every", "back_s", "reason"),
    [
        (22, 1, 0, None),
        (24, 1, 2, None),
        (25, 1, 3, "full answers were back 3 s after the overload (limit 2 s)"),
        (25, 100, 0, None),
        (25, 60, 3, "full answers were back 3 s after the overload (limit 2 s)"),
        (30, 1, None, "full answers were not back after the overload (limit 2 s)"),
    ],
)
def test_full_answers_are_back_soon(until_s, every, back_s, reason):
    offering = overloaded().between(22, until_s, FALLBACK, every=every)
    assert found(offering)["back_s"] == back_s
    assert reasons(offering) == ([reason] if reason else [])


def test_a_late_second_after_the_overload_passes_but_does_not_count():
    late = overloaded().between(22, 25, FALLBACK).between(22, 23, FALLBACK, late_ms=30.0)
    assert reasons(late) == ["full answers were back 3 s after the overload (limit 2 s)"]
    assert reasons(overloaded().between(22, 23, FALLBACK, late_ms=30.0)) == []


def test_answers_that_are_full_for_a_second_are_not_back():
    offering = overloaded().between(22, 23, FALLBACK).between(24, 25, FALLBACK)
    assert found(offering)["back_s"] == 3


def test_refusals_that_take_long_in_the_replica_are_not_allowed():
    assert reasons(overloaded(), refused_in_replica_p99_ms=10.0) == []
    broken = reasons(overloaded(), refused_in_replica_p99_ms=15.0)
    assert broken == ["the p99 of refusals in the replica is 15 ms (limit 10 ms)"]


@pytest.mark.parametrize(
    ("control", "verdict"), [("not held", "held"), ("held", "not held"), ("void", "void")]
)
def test_what_holds_is_held_against_a_control_that_must_not(control, verdict):
    assert verdict_of([{"verdict": "held"}], {"verdict": control}) == verdict


def test_the_control_is_the_given_file_without_load_shedding():
    document = {"applications": [{"deployments": [{"name": "FeatureFetch", "user_config": {"a": 1}}]}]}
    (front,) = without_load_shedding(document)["applications"][0]["deployments"]
    assert front["user_config"] == {"a": 1, "load_shedding": False}
    assert "load_shedding" not in document["applications"][0]["deployments"][0]["user_config"]


class Target:
    """Running service that may refuse to be deployed."""

    url = "http://127.0.0.1:1"

    def __init__(self, error=""):
        self.error = error

    def document(self):
        return {"applications": [{"deployments": [{"name": "FeatureFetch"}]}]}

    def metrics(self):
        return parse("", 0.0)

    def deploy(self, document):
        if self.error:
            raise LoadtestError(self.error)


def test_a_control_that_does_not_run_is_void_and_says_why(tmp_path, report):
    judge, moments = control_of(Target("python -m serve up failed:\n  the service\n  no core"), pytest.fail)
    control = judge(KNEE_RPS)
    assert (control, moments) == ({"verdict": "void", "reasons": ["no core"]}, [])
    without = report | {"control": control}
    told = "without load shedding nothing is known: no core"
    assert str(overload_findings(without)).endswith(f"  - {told}")
    for number, (given, has_row) in enumerate(((report, True), (without, False))):
        write_overload(tmp_path / str(number), given, {}, SLO)
        page = (tmp_path / str(number) / "report.html").read_text()
        assert ("<td>2×, no load shedding</td>" in page, told in page) == (has_row, not has_row)


def test_slow_refusals_do_not_judge_the_control(monkeypatch):
    requests = Offering(40, rate_rps=200).requests
    monkeypatch.setattr(overload, "offered", lambda load: SimpleNamespace(requests=requests))
    monkeypatch.setattr(overload, "bound_of_share_ms", lambda *_: 50.0)
    monkeypatch.setattr(overload, "PAGE_S", 0.0)
    bench = SimpleNamespace(bodies=[], candidates=1, slo=SLO, emit=lambda line: None)

    def offer(load):
        return offer_load(Target(), bench, KNEE_RPS, 100.0, load)

    control, run = control_of(Target(), offer), offer(Overload(2.0, 20.0))
    assert [judge(KNEE_RPS)["verdict"] for judge, _ in (control, run)] == ["held", "not held"]


def test_times_are_numbers_from_a_half_to_ten():
    assert read_times("0.5,2,3.5") == [0.5, 2.0, 3.5]
    for given in ("", "2,x", "0.4", "20", "2,nan"):
        with pytest.raises(LoadtestError, match="--times"):
            read_times(given)


def test_a_line_opens_with_multiple_and_verdict_and_names_what_did_not_happen():
    offering = Offering(30, rate_rps=200).between(2, 22, REFUSED, latency_ms=2.0, every=4)
    assert run_line(found(offering)) == (
        "  2×: verdict: held; requests/s: 200; full of the knee: 150.0%; weak seconds: 0; goodput of the knee: "
        "150.0%; by rung, /s: full 150; p99 of answers: 10.0 ms; refused: 1,000; p99 of refusals: 2.0 ms; "
        "failed: none; normal after: 0 s; generator late, p99: 0.5 ms, 0 late seconds"
    )
    line = run_line(found(Offering(30, rate_rps=200).between(2, 30, BROKEN)))
    assert line.startswith("  2×: verdict: not held; requests/s: 200; full of the knee: 0.0%; ")
    assert "failed: 4000 HTTP 500; normal after: –;" in line


@pytest.fixture
def report():
    runs = [found(overloaded(), times) for times in (3.0, 1.2, 2.0)]
    knees = {"knee_rps": 100.0, "knee_before_rps": 110.0, "knee_after_rps": 100.0}
    control = runs[2] | {"verdict": "not held", "reasons": []}
    return {"verdict": "void", **knees, "deadline_ms": 100.0, "machine": {}, "runs": runs, "control": control}


def test_the_page_shows_each_timeline(tmp_path, report):
    lines = {"2×": timeline(overloaded().requests, 30, [])}
    write_overload(tmp_path / "out", report, lines, SLO)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="plot"') == 2
    assert "share of the knee" in page


def test_both_knees_are_told(tmp_path, report):
    knees = "knee 100 requests/s (before 110, after 100)"
    assert str(overload_findings(report)).startswith(f"Overload: void, {knees}, ")
    write_overload(tmp_path / "out", report, {}, SLO)
    assert knees in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"knee_after_rps": 20.0}, "<p>the knee fell from 110 to 20\xa0/s.</p>"),
        ({"knee_after_rps": None}, "<p>the knee fell from 110 to 0\xa0/s.</p>"),
        ({}, "<p>All runs held; without load shedding the service fails.</p>"),
        ({"control": "held"}, "<p>without load shedding the service holds too, so it is not the cause.</p>"),
        ({"control": "void"}, "<p>without load shedding nothing is known.</p>"),
    ],
)
def test_the_banner_names_what_decided_beside_the_runs(tmp_path, report, changes, reason):
    runs = [run | {"verdict": "held", "reasons": []} for run in report["runs"]]
    control = report["control"] | {"verdict": changes.get("control", "not held")}
    write_overload(tmp_path / "out", report | changes | {"runs": runs, "control": control}, {}, SLO)
    assert reason in (tmp_path / "out" / "report.html").read_text()


def test_a_reason_names_its_run(tmp_path, report):
    run = report["runs"][0] | {"verdict": "void", "reasons": ["late"]}
    write_overload(tmp_path / "out", report | {"runs": [run]}, {}, SLO)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<p>3×: late.</p>" in page
    assert "<td>no verdict</td>" in page
