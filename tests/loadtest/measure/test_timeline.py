"""Tests of the timeline by second, of phases, and of recoveries after a step."""

from __future__ import annotations

import pytest

from loadtest.measure.cluster import ClusterSample
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.measure.timeline import describe_phases, describe_steps, recovery, step_rows, timeline
from loadtest.report.run import timeline_csv
from loadtest.workload.profiles import Profile, blocks, load_slo, phases, steps_up

FULL, POPULAR, DOWN = Outcome("full", True, True), Outcome("fallback", True), Outcome("HTTP 503", False)
STEP = Profile("step", 10, 5, 0, 12, 0, ((0, 1), (4, 1), (4, 2), (10, 2), (10, 1), (12, 1)))


def run(slow_until=0, outcome=FULL):
    """Ten requests a second, twice as many from the step on; those before `slow_until` are slow."""
    log = RequestLog()
    for second in range(12):
        num = 20 if 4 <= second < 10 else 10
        for i in range(num):
            slow = 4 <= second < slow_until
            at_s = second + (i + 0.5) / num
            log.add(at_s, 0.1, 150.0 if slow else 8.0, outcome if slow else FULL, 5)
    return log.requests()


def test_a_second_tells_what_was_offered_answered_and_there():
    samples = [ClusterSample(at_s, {"Scorer": 1}, 1) for at_s in (-0.2, 3.9)]
    samples += [ClusterSample(at_s, {"Scorer": 2}, 2) for at_s in (5.1, 8.0)]
    moments = timeline(run(slow_until=6, outcome=POPULAR), 12, samples)
    assert [moment.offered_rps for moment in moments] == [10] * 4 + [20] * 6 + [10] * 2
    assert [moment.replicas["Scorer"] for moment in moments] == [1] * 5 + [2] * 7
    assert [moment.nodes for moment in moments] == [1] * 5 + [2] * 7
    assert [moment.full_share for moment in moments] == [1.0] * 4 + [0.0] * 2 + [1.0] * 6
    assert (moments[4].p99_ms, moments[6].p99_ms) == (150.0, 8.0)


def test_what_was_seen_long_ago_is_not_taken_for_what_is_there():
    moments = timeline(run(), 12, [ClusterSample(1.2, {"Scorer": 3}, 2)])
    assert [moment.nodes for moment in moments] == [None] + [2] * 5 + [None] * 6
    assert [moment.replicas["Scorer"] for moment in moments] == [None] + [3] * 5 + [None] * 6


def test_a_request_that_failed_is_not_among_those_answered_in_full():
    moments = timeline(run(slow_until=6, outcome=DOWN), 12, [])
    assert [moment.full_rps for moment in moments] == [10] * 4 + [0] * 2 + [20] * 4 + [10] * 2


def test_a_second_in_which_nothing_was_asked_is_there_too():
    log = RequestLog()
    log.add(0.5, 0.0, 5.0, FULL, 5)
    log.add(2.5, 0.0, 5.0, DOWN, 0)
    moments = timeline(log.requests(), 3, [])
    assert [(m.offered_rps, m.failed, m.full_share) for m in moments] == [
        (1, 0, 1.0),
        (0, 0, None),
        (1, 1, None),
    ]


def test_the_warm_up_has_negative_seconds_and_each_second_its_percentiles():
    log = RequestLog()
    log.add(-0.5, 0.1, 700.0, FULL, 1)
    log.add(0.2, 0.2, 5.0, FULL, 1)
    log.add(0.3, 0.3, 1.0, DOWN, 0)
    log.add(1.1, 0.4, 8.0, FULL, 1)
    moments = timeline(log.requests(), 2, [], warmup_s=0.5)
    # A request counts in its due second, and its answer in the second of its arrival.
    assert [(m.t_s, m.offered_rps, m.answered_rps, m.failed) for m in moments] == [
        (-1, 1, 0, 0),
        (0, 2, 2, 1),
        (1, 1, 1, 0),
    ]
    warmup, first, last = moments
    assert warmup.p50_ms == 700.0
    assert (first.p50_ms, first.p99_ms, first.late_ms_p99) == (5.0, None, 0.3)
    assert last.p99_ms == 8.0
    assert timeline_csv(moments).splitlines()[1].startswith("0,2,2,5.000,,")


def test_the_csv_is_a_trace_with_a_column_for_each_deployment():
    lines = timeline_csv(
        timeline(run(), 12, [ClusterSample(2.0, {"FeatureFetch": 1, "Scorer": 3}, None)])
    ).splitlines()
    assert lines[0] == (
        "t_s,offered_rps,answered_rps,p50_ms,p99_ms,full_share,failed,"
        "FeatureFetch_replicas,Scorer_replicas,nodes"
    )
    assert lines[1] == "0,10,10,8.000,8.000,1.000,0,,,"
    assert lines[6] == "5,20,20,8.000,8.000,1.000,0,1,3,"
    assert timeline_csv(timeline(run(), 12, [])).splitlines()[0].endswith("failed,nodes")


def test_a_shape_is_told_by_its_phases():
    found = describe_phases(run(slow_until=6, outcome=POPULAR), STEP)
    assert [(phase["name"], phase["requests"]) for phase in found] == [("×1", 40), ("×2", 120), ("×1", 20)]
    assert [phase["full_share"] for phase in found] == [1.0, 0.667, 1.0]
    assert [phase["p99_ms"] for phase in found] == [8.0, 150.0, 8.0]


def test_a_day_rises_and_falls():
    day = ((0.0, 0.2), (2.0, 0.8), (4.0, 1.0), (6.0, 0.8), (8.0, 0.2))
    assert [(phase.name, phase.begins_s, phase.ends_s) for phase in phases(day)] == [
        ("rises", 0, 4),
        ("falls", 4, 8),
    ]
    assert steps_up(day) == []
    assert sum(block.seconds for block in blocks(day)) == 8


@pytest.mark.parametrize(
    ("slow_until", "after_s", "message"),
    [
        (0, 0, "p99 held at once"),
        (7, 3, "p99 held again after 3 s"),
        (12, None, "p99 did not recover in that phase"),
    ],
)
def test_the_recovery_counts_from_the_step(slow_until, after_s, message):
    (step,) = describe_steps(run(slow_until), STEP, load_slo())
    assert (step["begins_s"], step["ends_s"], step["name"]) == (4, 10, "×1 to ×2")
    assert step["p99_recovered_s"] == after_s
    assert recovery(step).startswith(message)
    assert "full answers held at once" in recovery(step)


def test_one_good_second_is_no_recovery():
    log = RequestLog()
    for second in range(12):
        slow = 4 <= second < 8 and second != 5
        log.add(second + 0.5, 0.0, 150.0 if slow else 5.0, FULL, 5)
    (step,) = describe_steps(log.requests(), STEP, load_slo())
    # Two good seconds remain in the phase.
    assert step["p99_recovered_s"] is None


@pytest.mark.parametrize("outcome", [POPULAR, DOWN])
def test_a_recovery_that_does_not_last_to_the_end_of_the_phase_is_none(outcome):
    log = RequestLog()
    for second in range(12):
        bad = 7 <= second < 10
        log.add(second + 0.5, 0.0, 150.0 if bad else 5.0, outcome if bad else FULL, 5)
    (step,) = describe_steps(log.requests(), STEP, load_slo())
    assert (step["p99_recovered_s"], step["full_recovered_s"]) == (None, None)
    assert recovery(step) == ("p99 did not recover in that phase, full answers did not recover in that phase")


def test_a_few_slow_requests_later_on_take_no_recovery_back():
    log = RequestLog()
    for i in range(1_200):
        at_s = (i + 0.5) / 100
        log.add(at_s, 0.0, 150.0 if 4 <= at_s < 6 or 9 <= at_s < 9.03 else 5.0, FULL, 5)
    (step,) = describe_steps(log.requests(), STEP, load_slo())
    assert step["p99_recovered_s"] == 2


def test_a_step_is_told_in_a_row_to_a_tenth_of_a_second():
    profile = Profile("spike", 10, 5, 0, 10, 0, ((0, 1), (10 / 3, 1), (10 / 3, 3), (10, 3)))
    held = "p99 held at once, full answers held at once"
    report = {"steps": describe_steps(run(), profile, load_slo())}
    assert step_rows(report) == [("\u2003×1 to ×3, at 3.3 s", held, "")]


def test_a_phase_in_which_nothing_was_asked_has_no_latency():
    pause = Profile("pause", 10, 5, 0, 12, 0, ((0, 0), (4, 0), (4, 2), (10, 2), (10, 1), (12, 1)))
    requests = run()
    first, second, _ = describe_phases(requests.where(requests.at_s >= 4), pause)
    assert (first["requests"], first["p99_ms"]) == (0, None)
    assert (second["requests"], second["p99_ms"]) == (120, 8.0)
