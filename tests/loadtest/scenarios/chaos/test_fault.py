"""Tests of the measured effects of a fault and of their limits, on synthetic loads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loadtest.errors import LoadtestError
from loadtest.measure.cluster import ClusterSample
from loadtest.report.chaos import chaos_findings, write_chaos
from loadtest.scenarios.chaos import run as chaos
from loadtest.scenarios.chaos.fault import Allowed, Times, broken, describe
from loadtest.scenarios.chaos.run import FAULTS, run_fault, select_faults
from loadtest.workload.profiles import load_slo
from tests.support.load_results import CLOSED, FALLBACK, Offering

SLO = load_slo()


def seen_at(at_s, whole):
    return ClusterSample(at_s, {}, None, whole)


KILLED = Times(begun_s=8.0, done_s=8.001, healed_s=8.0, ends_s=28.0)
FULL_STRENGTH = [seen_at(at / 4, True) for at in range(4 * 28)]


def found(offering, times=KILLED, seen=FULL_STRENGTH, orphans=()):
    return describe(offering.offered, times, seen, SLO) | {"orphans": list(orphans)}


def reasons(allowed, *arguments, **named):
    return list(broken(found(*arguments, **named), allowed))


def test_a_fault_that_nobody_notices_is_allowed():
    numbers = found(Offering(28))
    assert (numbers["failed"], numbers["failed_first"], numbers["outage_s"]) == (
        0,
        0,
        pytest.approx(0.01, abs=0.002),
    )
    assert (numbers["strength_s"], numbers["p99_back_s"], numbers["whole_s"]) == (0.0, 0, 0)
    strict = Allowed(0.0, "none", outage_s=0.1, strength_s=0, p99_back_s=0, whole_s=0)
    assert list(broken(numbers, strict)) == []


def test_what_the_retry_saved_counts_without_it_only():
    offering = Offering(28, latency_ms=30.0).failed_first(8.01, 8.02)
    assert reasons(Allowed(0.0, "in flight"), offering) == []
    assert reasons(Allowed(0.0, "none"), offering) == [
        "the first tries of 2 requests failed (2 connection closed; limit 0)"
    ]


def test_more_first_tries_than_were_in_flight_may_not_fail():
    offering = Offering(28, latency_ms=30.0).failed_first(*(8 + i / 100 for i in range(40)))
    in_flight = found(offering)["in_flight"]
    # 3 requests of 100 a second for 30 ms, and those sent in the 20 ms after the fault.
    assert 5 <= in_flight <= 7
    assert reasons(Allowed(0.0, "in flight"), offering) == [
        f"the first tries of 40 requests failed (40 connection closed; limit {in_flight})"
    ]


def test_a_failure_before_the_fault_is_not_its_own():
    numbers = found(Offering(28).between(5, 5.01, CLOSED).failed_first(5.0))
    assert (numbers["failed"], numbers["failed_first"], numbers["failed_before"]) == (0, 0, 1)


def test_an_outage_lasts_from_the_first_failure_to_the_last():
    offering = Offering(28).between(8, 11, CLOSED)
    numbers = found(offering)
    assert numbers["outage_s"] == pytest.approx(3.0, abs=0.05)
    assert list(broken(numbers, Allowed(None, outage_s=3.1))) == []
    assert "the outage took" in next(iter(broken(numbers, Allowed(None, outage_s=2.9))))
    assert reasons(Allowed(0.01), offering) == [
        "300 of 2,800 requests failed despite the client's one retry (300 connection closed)"
    ]
    assert reasons(Allowed(0.2), offering) == []


def test_full_recovery_needs_full_answers_and_counts_from_the_fault_s_end():
    held = Times(8.0, 8.0, healed_s=14.0, ends_s=28.0)
    offering = Offering(28).between(8, 16, FALLBACK)
    numbers = found(offering, held)
    assert (numbers["whole_s"], numbers["p99_back_s"]) == (2, 0)
    assert numbers["rungs"] == {"full": 1200, "fallback": 800}
    assert reasons(Allowed(0.0, "none", whole_s=1.0), offering, held) == [
        "the service recovered fully after 2 s (limit 1 s)"
    ]


def test_replicas_are_back_when_all_run_for_good():
    seen = [
        seen_at(at, whole)
        for at, whole in ((7.5, True), (9.0, False), (11.0, False), (12.5, True), (20.0, True))
    ]
    assert found(Offering(28), seen=seen)["strength_s"] == 4.5
    never = [*seen, seen_at(27.0, False)]
    assert reasons(Allowed(strength_s=15.0), Offering(28), seen=never) == [
        "all replicas ran again after more than the time of the load (limit 15 s)"
    ]


def test_a_process_that_is_left_is_never_allowed():
    assert reasons(Allowed(), Offering(28), orphans=["haproxy"]) == ["processes were left behind: haproxy"]


def test_a_fault_has_a_name_and_says_what_is_allowed():
    assert [fault.name for fault in select_faults(["haproxy", "scorer", "haproxy"])] == ["haproxy", "scorer"]
    assert select_faults([]) == list(FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.what and fault.allowed.describe() for fault in FAULTS)
    with pytest.raises(LoadtestError, match="--fault scorr: unknown fault; use scorer, "):
        select_faults(["scorr"])


def test_a_fault_without_a_measurement_does_not_stop_the_report(monkeypatch, tmp_path):
    left, lines = [], []
    run = SimpleNamespace(
        provide_service=lambda fault: None,
        rate_rps=lambda *_: 10.0,
        bench=SimpleNamespace(emit=lines.append),
        end_service=lambda: left.append(True),
    )

    def gone(*_):
        raise LoadtestError("process 7 ended before the fault")

    monkeypatch.setattr(chaos, "_under_load", gone)
    result = run_fault(run, select_faults(["scorer"])[0], {})
    assert (result["verdict"], left) == ("not held", [True])
    report = {
        "verdict": "not held",
        "knee_rps": None,
        "client_timeout_s": 0.25,
        "machine": {"cores": 2},
        "seconds": 1.0,
    }
    report |= {"faults": [result]}
    assert "process 7 ended" in str(chaos_findings(report))
    write_chaos(tmp_path / "out", report, {}, SLO)
    assert "process 7 ended" in (tmp_path / "out" / "report.html").read_text()


def chaos_page(folder, monkeypatch, offering, rate_rps=None):
    """Return the report of a fault during an offer, and its page."""
    run = SimpleNamespace(
        provide_service=lambda fault: None,
        rate_rps=lambda *_: 10.0,
        bench=SimpleNamespace(slo=SLO, emit=lambda _: None),
    )
    monkeypatch.setattr(chaos, "_under_load", lambda *_: (found(offering), [], []))
    result = run_fault(run, select_faults(["scorer"])[0], {})
    report = {"verdict": result["verdict"], "faults": [result], "rate_rps": rate_rps}
    report |= {"knee_rps": None, "client_timeout_s": 0.25, "machine": {"cores": 2}, "seconds": 28.0}
    write_chaos(folder / "out", report, {}, SLO)
    return result, (folder / "out" / "report.html").read_text()


def test_the_page_names_the_load_that_was_named(tmp_path, monkeypatch):
    result, page = chaos_page(tmp_path, monkeypatch, Offering(28), rate_rps=90.0)
    assert result["verdict"] == "held"
    assert "Held: survival of faults under load (1 run)" in page
    assert ">1 of 1<" in page
    assert (
        '<dt>load</dt><dd class="value">90 /s</dd><dd class="note">as the command was told; no knee was measured'
        in page
    )
    assert "60 %" not in page


def test_a_late_generator_is_the_reason_of_a_fault_without_a_verdict(tmp_path, monkeypatch):
    offering = Offering(28).between(0, 7, late_ms=50.0).between(8, 11, CLOSED)
    result, page = chaos_page(tmp_path, monkeypatch, offering)
    assert result["verdict"] == "void"
    assert "<p>scorer: the load generator itself was late" in page
    assert "<td>no verdict</td>" in page
    assert "not valid" in page


def test_a_named_rate_is_the_load_and_no_knee():
    run = object.__new__(chaos.ChaosRun)
    run.knee_rps, run._rate_rps = None, 90.0
    assert (run.rate_rps(None), run.knee_rps) == (90.0, None)
