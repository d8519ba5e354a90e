"""Test the report of an experiment, from a served log to a verdict."""

from __future__ import annotations

import json
import signal
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from serve.config.settings import Arm
from serve.contract.errors import TabrankError
from serve.features.experiment_metrics import metrics_of
from serve.features.surface import read_surface
from tests.support.experiment_log import (
    DAY_MS,
    START_MS,
    SURFACE,
    declared_text,
    redeclare,
    write_experiment,
    write_rows,
)
from tests.support.live_service import event
from tests.support.logging_service import Logging, busy_hour
from tests.support.page_parser import Page
from training.__main__ import app
from training.experiment import guardrails
from training.experiment import report as analysis
from training.experiment.comparison import capped, days_needed
from training.experiment.confidence_sequence import factor
from training.experiment.declared import Declared, declared
from training.experiment.page import page, text
from training.experiment.panel import panel
from training.experiment.served_log import hashed, read_events, read_exposures
from training.experiment.verdict import by_denominator
from training.experiment.window import utc, window

# The logs here are of few days.
LAUNCH = Declared("launch", min_days=2)
HOUR_MS = 3_600_000
METRICS = metrics_of(SURFACE)


def report(log, declaration, surface=SURFACE, **more):
    """Report a log that was served under this declaration."""
    if declaration == Declared("launch"):
        return analysis.report(log, declaration, surface, **more)
    with tempfile.TemporaryDirectory() as folder:
        served = redeclare(log, Path(folder) / "log", {0: declared_text(declaration, surface)})
        return analysis.report(served, declaration, surface, **more)


@pytest.fixture(autouse=True)
def handlers():
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture(scope="module")
def won(tmp_path_factory):
    """A log in which the model raises clicks and joins by 40 %."""
    folder = tmp_path_factory.mktemp("won")
    return write_experiment(folder / "log", uplift=0.4, before_days=4, num_viewers=1_500, declaration=LAUNCH)


def shown(viewer, hours, arm="model", **more):
    return {"viewer": viewer, "ts_ms": START_MS + int(hours * HOUR_MS), "arm": arm} | more


def did(viewer, kind, hours, **more):
    return {"viewer": viewer, "kind": kind, "ts_ms": START_MS + int(hours * HOUR_MS)} | more


def panel_of(log, declaration=LAUNCH):
    exposures = read_exposures(log, "launch").rows
    return panel(exposures, read_events(log), window(exposures, declaration), SURFACE.outcomes)


def run(*arguments):
    return CliRunner().invoke(app, ["experiment", *map(str, arguments)])


APPLICATION = (
    "- {import_path: 'serve.app:build', args: {surface: %s}, deployments: "
    "[{name: FeatureFetch, user_config: {experiment: {name: %s}}}]}\n"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A file that names the surface, and declares another experiment."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "mine.toml").write_text(SURFACE.text)
    (folder / "cluster.yaml").write_text("applications:\n" + APPLICATION % ("mine.toml", "other"))
    return folder / "cluster.yaml"


def test_each_viewers_sums_are_those_of_its_own_exposures(tmp_path):
    log = write_rows(
        tmp_path / "log",
        [shown("ann", 1), shown("bob", 2, "popular"), shown("ann", 23), shown("ann", 25), shown("cyd", 30)],
        [
            did("ann", "click", 1.1, request_id="r0"),
            # On the next day, for a ranking of the day before.
            did("ann", "join", 24.5, request_id="r2"),
            did("ann", "leave", 24.75),
            # Without a request: counts for the viewer and the day.
            did("bob", "click", 3),
            # Before the viewer's first exposure.
            did("bob", "click", 1),
            # A day without an exposure.
            did("bob", "click", 26),
            did("cyd", "click", 31, request_id="unheard of"),
            # No leave follows.
            did("cyd", "join", 31),
        ],
    )
    people = panel_of(log)
    cells = {
        (int(viewer), int(day)): tuple(float(people.sums[name][i]) for name in people.sums)
        for i, (viewer, day) in enumerate(zip(people.viewer, people.day, strict=True))
    }
    # Order: exposures, active days, joins, clicks, minutes of stays.
    assert cells == {
        (0, 0): (2, 1, 1, 1, 15),
        (0, 1): (1, 1, 0, 0, 0),
        (1, 0): (1, 1, 0, 1, 0),
        (2, 1): (1, 1, 1, 0, 0),
    }
    assert people.num_unattributed == 3
    assert people.num_unknown == {"join": 0, "click": 0, "stay": 1}
    assert people.totals()["exposures"].tolist() == [3, 1, 1]
    assert people.first_day.tolist() == [0, 0, 1]


def test_a_kept_exposure_and_its_events_count_for_those_it_stands_for(tmp_path):
    log = write_rows(
        tmp_path / "log",
        [shown("ann", 1, one_in=3), shown("bob", 2, "popular"), shown("ann", 3), shown("cyd", 4, one_in=2)],
        [
            did("ann", "click", 1.1, request_id="r0"),
            did("ann", "click", 3.1, request_id="r2"),
            did("bob", "join", 2.1, request_id="r1"),
            # Of the two exposures that `r0` stands for beside itself, which were not kept.
            did("ann", "click", 1.2, request_id="left out 1"),
            did("ann", "click", 1.3, request_id="left out 2"),
        ],
    )
    people = panel_of(log)
    totals = people.totals()
    assert totals["exposures"].tolist() == [4, 1, 2]
    assert totals["active_days"].tolist() == [1, 1, 1]
    assert totals["click"].tolist() == [4, 0, 0]
    assert totals["join"].tolist() == [0, 1, 0]
    assert people.num_unattributed == 0
    (warning,) = (one for one in report(log, LAUNCH)["warnings"] if "were kept" in one)
    assert warning.startswith("4 exposures were kept of about 7, because Ingest did not keep up")


def test_metrics_of_exposures_are_those_of_the_whole_log_where_the_rate_follows_the_hour(tmp_path):
    rng = np.random.default_rng(0)
    whole, kept, events = [], [], []
    for i in range(16_000):
        hours = 24 * rng.random()
        one_in = 1 + int(hours > 12) * 7
        row = shown(f"v{i % 2_000}", hours, ("popular", "model")[i % 2_000 % 2], request_id=f"r{i}")
        whole.append(row)
        kept += [row | {"one_in": one_in}] if rng.random() < 1 / one_in else []
        if rng.random() < (0.4 if hours > 12 else 0.1):
            events.append(did(row["viewer"], "click", hours, request_id=f"r{i}"))
    everything, sample = (
        clicks_of(report(write_rows(tmp_path / name, rows, events), LAUNCH), "click_per_exposure")
        for name, rows in (("whole", whole), ("kept", kept))
    )
    assert everything["control"] == pytest.approx(0.25, rel=0.05)
    assert sample["control"] == pytest.approx(everything["control"], rel=0.1)
    low, high = sample["effect"]["low"], sample["effect"]["high"]
    assert low < everything["effect"]["difference"] < high


def test_the_interval_of_any_look_uses_the_first_24_hours(tmp_path):
    rng = np.random.default_rng(0)
    exposures = [shown(f"v{i}", 23 + i, ("popular", "model")[i % 2]) for i in range(180)]
    events = [did(f"v{i}", "click", 23 + i, request_id=f"r{i}") for i in range(180) if rng.random() < 0.5]
    clicks = clicks_of(report(write_rows(tmp_path / "log", exposures, events), LAUNCH))
    effect, always = clicks["effect"], clicks["always_valid"]
    wide = (always["high"] - always["low"]) / (effect["high"] - effect["low"])
    assert wide == pytest.approx(factor(180, 7 * 24) / norm.isf(0.025))


def test_the_days_needed_are_by_the_whole_days_or_by_all_if_none_is_whole(tmp_path):
    came = [("popular", 1), ("model", 2), ("model", 3), ("popular", 25)]
    log = write_rows(tmp_path / "log", [shown(f"v{i}", hours, arm) for i, (arm, hours) in enumerate(came)])
    people = panel_of(log)
    days = partial(days_needed, people, ("popular", "model"))
    assert days(10, [False, True]) == 6
    assert days(10, [True, False]) == 2
    assert days(10, [False, False]) == days(10, [True, True]) == 3
    assert (days(4, [False, True]), days(None, [False, True])) == (0, None)
    # An arm lacks one of three viewers, and another comes with it.
    assert (days(0, [True, True]), days(0, [True, True], 3)) == (0, 1)


def test_an_exposure_that_the_log_holds_twice_counts_once(tmp_path):
    twice = shown("ann", 1, seq=1, request_id="r0")
    log = write_rows(tmp_path / "log", [twice, twice, shown("bob", 2, "popular")])
    assert panel_of(log).totals()["exposures"].tolist() == [1, 1]


def test_a_log_before_the_service_may_have_datetimes_and_ids_of_whole_numbers(tmp_path):
    log = write_rows(tmp_path / "log", [{"ts_ms": START_MS, "viewer": "7", "arm": "model"}])
    at = pa.array([START_MS * 1_000 - 5_000], pa.timestamp("us"))
    pq.write_table(pa.table({"request_id": [1], "ts_ms": at, "viewer": [7]}), log / "exposures.parquet")
    rows = read_exposures(log, "launch").rows
    assert rows["ts_ms"].tolist() == [START_MS - 5, START_MS]
    assert rows["viewer"].nunique() == 1


def test_a_log_in_seconds_is_refused_with_the_factor(tmp_path):
    log = write_rows(tmp_path / "log", [{"ts_ms": START_MS // 1_000, "viewer": "ann", "arm": "model"}])
    done = run("report", "--log", log, "--experiment", "launch")
    assert done.exit_code == 2
    assert "looks like seconds; multiply by 1000" in done.stderr


def test_who_is_anonymous_or_a_test_is_left_out_and_counted(tmp_path):
    log = write_rows(
        tmp_path / "log",
        [shown("ann", 1), shown("bob", 1, "popular"), shown(None, 2), shown("cyd", 2, traffic="test")],
    )
    exposures = read_exposures(log, "launch")
    assert set(exposures.rows["viewer"]) == set(hashed(pa.array(["ann", "bob"])).to_pylist())
    assert (exposures.num_anonymous, exposures.num_test) == (1, 1)


def test_the_window_begins_when_the_shares_last_changed(tmp_path):
    early = [shown(f"v{i}", i / 10, "model", share=0.1) for i in range(5)]
    early += [shown(f"v{i}", i / 10, "popular", share=0.9) for i in range(5, 10)]
    late = [shown(f"v{i}", 30 + i, ("model", "popular")[i % 2]) for i in range(10)]
    log = write_rows(tmp_path / "log", early + late)
    result = report(log, LAUNCH)
    assert result["window"]["shares_changed"]
    assert result["window"]["exposures_left_out"] == 10
    assert result["sample_ratio"]["viewers"] == {"popular": 5, "model": 5}
    assert result["sample_ratio"]["crossing_viewers"] == 0
    # Two arms were served before, and both may have changed behaviour.
    assert result["viewers_seen_before"] == 0


def test_the_time_of_one_arm_alone_is_before_the_experiment(tmp_path):
    early = [shown(f"v{i}", i / 10, "model", share=1.0) for i in range(10)]
    late = [shown(f"v{i}", 30 + i, ("model", "popular")[i % 2]) for i in range(10)]
    assert report(write_rows(tmp_path / "log", early + late), LAUNCH)["viewers_seen_before"] == 10


def test_a_model_that_is_better_has_won(won):
    result = report(won, LAUNCH)
    assert (result["verdict"], result["days_needed"]) == ("won", 0)
    metrics = {metric["name"]: metric for metric in result["metrics"]}
    assert list(metrics) == [metric.name for metric in METRICS]
    for name in ("join_per_exposure", "click_per_viewer", "join_per_viewer"):
        effect, always = metrics[name]["effect"], metrics[name]["always_valid"]
        assert 0 < effect["relative_low"] < 0.4 < effect["relative_high"]
        assert always["low"] < effect["low"] < effect["high"] < always["high"]
        assert effect["p"] <= effect["p_holm"] <= len(METRICS) * effect["p"]
        assert 0.02 < metrics[name]["variance_removed"] < 0.9
        assert metrics[name]["effect"]["difference"] == pytest.approx(metrics[name]["days"][-1]["difference"])
    # A join lasts one minute.
    minutes, joins = (metrics[f"{name}_per_viewer"]["control"] for name in ("stay", "join"))
    assert minutes == pytest.approx(joins, rel=0.05)
    of_model = result["guardrails"]["model"]
    assert of_model["degraded_share"] == pytest.approx(0.02, abs=0.01)
    assert of_model["reasons"] == {"deadline": pytest.approx(of_model["degraded_share"])}
    assert (result["guardrails"]["popular"]["p99_ms"], of_model["p99_ms"]) == (5.0, 10.0)


def ship(log, *, at_hours, arm="model", share=1.0, num=300):
    """Add exposures of an arm that has all viewers from this time on, one a minute."""
    table = pq.read_table(next((log / "exposures").iterdir())).slice(0, num)
    start_ms = START_MS + int(at_hours * HOUR_MS)
    columns = {
        "request_id": [f"{arm}{at_hours}-{i}" for i in range(num)],
        "seq": [1_000_000 + int(at_hours * 1_000) + i for i in range(num)],
        "ts_ms": [start_ms + 60_000 * i for i in range(num)],
        "experiment": ["launch"] * num,
        "arm": [arm] * num,
        "share": [share] * num,
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    pq.write_table(table, log / "exposures" / f"{1_000_000 + int(at_hours * 1_000):020d}.parquet")


def effects_of(result):
    return [(metric["name"], metric["effect"], metric.get("always_valid")) for metric in result["metrics"]]


def test_a_winner_that_was_shipped_has_still_won_with_the_same_effect(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=0.4, before_days=4, num_viewers=1_500)
    before = report(log, LAUNCH)
    ship(log, at_hours=96.5)
    arms = (Arm("model", "current", 1.0), Arm("popular", "popular", 0.0))
    after = report(log, Declared("launch", arms=arms, source="cluster.yaml", min_days=2))
    assert (before["verdict"], after["verdict"]) == ("won", "won")
    assert effects_of(after) == effects_of(before)
    assert after["window"]["closed"] == "one arm has all viewers from then on"
    assert "The window ends before" in text(after)
    # Shipped under another name.
    arms = (Arm("ours", "current", 1.0),)
    assert report(log, Declared("launch", arms=arms, source="cluster.yaml"))["treatment"] == "model"
    assert after["left_out"]["events_without_exposure"] == before["left_out"]["events_without_exposure"]


def test_a_winner_shipped_before_the_declared_end_is_judged_as_at_any_look(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=-0.15, num_viewers=1_000)
    known = {"start_ms": START_MS, "primary_metric": "click_per_viewer", "end_ms": START_MS + 5 * DAY_MS}
    ship(log, at_hours=96.5, num=24 * 60)
    result = report(log, Declared("launch", **known))
    assert (result["verdict"], result["window"]["ended"]) == ("no difference shown", False)
    assert "valid however often you look" in result["reason"]
    assert result["outlook"] == "no further days come: one arm has all viewers from then on"


def test_a_time_of_one_arm_alone_parts_two_windows_and_a_late_replica_does_not(tmp_path):
    def arms(hours, num=40):
        return [shown(f"v{i}", hours + i / 10, ("popular", "model")[i % 2]) for i in range(num)]

    def alone(hours, num=40):
        return [shown(f"v{i}", hours + i / 10, "model", share=1.0) for i in range(num)]

    span = report(write_rows(tmp_path / "again", arms(0) + alone(10) + arms(20)), LAUNCH)["window"]
    assert (span["start"], span["closed"]) == (utc(START_MS + int(13.9 * HOUR_MS) + 1), None)
    # A replica takes up the new shares 3.6 s after the other.
    late = [shown("v1", 10.001, "popular")]
    span = report(write_rows(tmp_path / "late", arms(0) + alone(10) + late), LAUNCH)["window"]
    assert (span["start"], span["end"]) == (utc(START_MS), utc(START_MS + 10 * HOUR_MS))
    # One drains for a minute and a half while the other serves.
    for hours in (10.025, 12.5, 31.0):
        late = sorted([*alone(10, 200), shown("v1", hours, "popular")], key=lambda row: row["ts_ms"])
        span = report(write_rows(tmp_path / f"{hours}", arms(0, 80) + late), LAUNCH)["window"]
        assert (span["start"], span["end"]) == (utc(START_MS), utc(START_MS + 10 * HOUR_MS))
    with pytest.raises(TabrankError, match="launch: one arm always had all viewers; give a second arm"):
        report(write_rows(tmp_path / "alone", alone(0)), LAUNCH)


def test_p_values_before_the_declared_end_are_those_of_any_look(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=0.2, num_viewers=1_000)
    early = {m["name"]: m for m in report(log, LAUNCH)["metrics"]}
    end_ms = START_MS + 4 * DAY_MS - 10 * HOUR_MS
    ended = {m["name"]: m for m in report(log, Declared("launch", end_ms=end_ms))["metrics"]}
    for metric in early.values():
        p, always = metric["effect"]["p"], metric["always_valid"]
        assert (p < 0.05) == (always["low"] > 0 or always["high"] < 0)
        assert p == always["p"] == metric["days"][-1]["p"]
    clicks = ended["click_per_viewer"]
    assert clicks["effect"]["p"] < clicks["always_valid"]["p"] / 5


def test_a_run_of_45_seconds_is_too_early_for_a_verdict(tmp_path):
    exposures = [shown(f"v{i}", i / 1e5, ("popular", "model")[i % 2]) for i in range(1_200)]
    events = [did(f"v{i}", "join", i / 1e5, request_id=f"r{i}") for i in range(1, 1_200, 2) if i % 3]
    log = write_rows(tmp_path / "log", exposures, events)
    result = report(log, LAUNCH)
    assert (result["verdict"], result["days_needed"]) == ("no difference shown", 2)
    assert result["reason"].startswith(
        "too early: Join per viewer (the share of viewers with any, as few have) +"
    )
    assert "a verdict needs 2 whole days (min_days), not 0" in text(result)
    assert report(log, Declared("launch", min_days=0))["verdict"] == "won"
    result = report(log, Declared("launch", min_days=0, min_exposures=1_201))
    assert (result["verdict"], result["days_needed"]) == ("no difference shown", None)
    assert "a verdict needs 1,201 exposures (min_exposures), not 1,200" in text(result)
    # A start long before the first exposure adds no days, and after the end none come.
    known = {"start_ms": START_MS - 3 * DAY_MS, "end_ms": START_MS + 30_000}
    result = report(log, Declared("launch", **known))
    assert result["verdict"] == "no difference shown"
    assert result["outlook"] == "no further days come: the declared end has passed"


def test_a_different_share_of_fallbacks_is_flagged_with_its_interval(tmp_path):
    def log_of(name, every):
        rows = [
            shown(f"v{i}", i / 20, ("popular", "model")[i % 2], latency_ms=1.0 + i % 7, degraded=[])
            for i in range(2_000)
        ]
        for i, row in enumerate(rows):
            if every[i % 2] and i // 2 % every[i % 2] == 0:
                row |= {"rung": "fallback", "degraded": ["deadline"]}
        return write_rows(tmp_path / name, rows)

    uneven = report(log_of("uneven", (25, 10)), LAUNCH)
    (warning,) = uneven["warnings"]
    assert warning.startswith(
        "the arms were degraded unevenly: answers by fallback are 10.00% of 'model' and 4.00%"
    )
    assert f"warning: {warning}" in text(uneven)
    tested = {row["name"]: row for row in uneven["guardrail_tests"]}
    assert 0 < tested["fallback"]["low"] < 0.08 < tested["fallback"]["high"]
    # No answer of the model at all: neither arm varies.
    (warning,) = report(log_of("none", (0, 1)), LAUNCH)["warnings"]
    assert "answers by fallback are 100.00% of 'model' and 0.00% of 'popular'" in warning
    # However sure, so few matter to nobody.
    rare = tested["fallback"] | {"low": 0.001, "high": 0.003, "p": 1e-9}
    assert guardrails.warnings([rare], ("popular", "model")) == []
    assert guardrails.warnings([rare | {"low": 0.006}], ("popular", "model"))
    even = report(log_of("even", (25, 25)), LAUNCH)
    assert even["warnings"] == []
    (row,) = [row for row in even["guardrail_tests"] if row["name"] == "fallback"]
    assert row["low"] < 0 < row["high"]


def test_days_begin_at_midnight_utc(tmp_path):
    before = [shown("ann", hours, None, experiment=None, share=None) for hours in (-26.5, -25.5, -1)]
    log = write_rows(
        tmp_path / "log", [*before, shown("ann", 22.5), shown("ann", 24), shown("bob", 2, "popular")]
    )
    people = panel_of(log)
    assert people.totals()["active_days"].tolist() == [1, 2]
    assert people.before["active_days before"].tolist() == [0, 2]


def clicks_of(result, name="click_per_viewer"):
    return next(metric for metric in result["metrics"] if metric["name"] == name)


def test_what_the_arms_did_before_a_late_start_is_not_adjusted_by(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=0.4, num_viewers=1_500, days=8)
    result = report(log, Declared("launch", start_ms=START_MS + 4 * DAY_MS))
    assert result["viewers_seen_before"] == 0
    effect = clicks_of(result)["effect"]
    assert 0.25 < effect["relative_low"] < 0.4 < effect["relative_high"]


def test_an_earlier_experiment_with_the_same_salt_does_not_adjust(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=0.4, num_viewers=1_500, before_days=4, earlier="alike")
    result = report(log, LAUNCH)
    assert (result["window"]["assigned_alike"], result["viewers_seen_before"]) == (["rehearsal"], 0)
    assert 0.25 < clicks_of(result)["effect"]["relative_low"] < 0.4
    assert "rehearsal assigned viewers as this experiment does (the same salt)" in text(result)


def test_an_earlier_experiment_without_a_named_arm_counts_too(tmp_path):
    """An exposure of it without an arm, from another writer of the log, is one more arm."""
    rows = []
    for i in range(60):
        arm = ("popular", "model")[i % 2]
        before = "a" if arm == "popular" else None
        rows += [shown(f"v{i}", i / 100, before, experiment="rehearsal"), shown(f"v{i}", 24 + i / 100, arm)]
    exposures = read_exposures(write_rows(tmp_path / "log", rows), "launch").rows
    found = window(exposures, LAUNCH)
    assert (found.assigned_alike, found.before_ms) == (("rehearsal",), START_MS)


def test_an_earlier_experiment_with_another_salt_adjusts(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=0.4, num_viewers=1_500, before_days=4, earlier="anew")
    result = report(log, LAUNCH)
    assert (result["window"]["assigned_alike"], result["viewers_seen_before"] > 1_000) == ([], True)
    clicks = clicks_of(result)
    assert clicks["variance_removed"] > 0.1
    assert clicks["effect"]["relative_low"] < 0.4 < clicks["effect"]["relative_high"]


def test_a_treatment_that_breaks_joins_has_lost(tmp_path):
    rng = np.random.default_rng(0)
    exposures = [shown(f"v{i}", i / 10, ("popular", "model")[i % 2]) for i in range(600)]
    events = [
        did(f"v{i}", "join", i / 10 + 0.01, request_id=f"r{i}")
        for i in range(0, 600, 2)
        if rng.random() < 0.3
    ]
    result = report(write_rows(tmp_path / "log", exposures, events), LAUNCH)
    assert result["verdict"] == "lost"
    assert result["reason"].startswith(
        "Join per viewer (the share of viewers with any, as few have) -100.00%"
    )
    assert "lost" in text(result)


def judged(folder, exposures, joins, *, num=800, fallback=0):
    """Return the report of viewers with these mean exposures and joins per exposure, by arm.

    One in `fallback` answers of the model is a fallback.
    """
    rng, shows, events = np.random.default_rng(0), [], []
    for i in range(num):
        for k in range(exposures[i % 2] + i // 2 % 3 - 1):
            hours = i / 100 + k / 1_000
            shows.append(shown(f"v{i}", hours, ("popular", "model")[i % 2]))
            if i % 2 and fallback and len(shows) % fallback == 0:
                shows[-1]["rung"] = "fallback"
            if rng.random() < joins[i % 2]:
                events.append(did(f"v{i}", "join", hours, request_id=f"r{len(shows) - 1}"))
    return report(
        write_rows(folder, shows, events), Declared("launch", min_days=0, primary_metric="join_per_exposure")
    )


def test_a_treatment_that_lowers_exposures_has_not_won(tmp_path):
    assert judged(tmp_path / "even", (4, 4), (0.1, 0.9))["verdict"] == "won"
    result = judged(tmp_path / "fewer", (4, 2), (0.1, 0.9))
    assert result["verdict"] == "no difference shown"
    assert result["reason"].startswith("not won: Exposures per viewer -50.03% [-5")
    assert "], lower by more than 2.0%; Join per exposure +" in result["reason"]
    assert result["outlook"] == "more days alone need not change this verdict"
    assert result["warnings"] == []
    row = result["guardrail_tests"][0]
    assert (row["name"], row["control"], row["treatment"]) == (
        "exposures_per_viewer",
        pytest.approx(4, abs=0.01),
        pytest.approx(2, abs=0.01),
    )
    assert "Exposures per viewer" in text(result)
    # A guardrail does not speak against a loss.
    assert judged(tmp_path / "worse", (4, 2), (0.9, 0.1))["verdict"] == "lost"
    # After the declared end the interval of one look decides.
    ended = report(tmp_path / "fewer", Declared("launch", min_days=0, end_ms=START_MS + 7 * HOUR_MS))
    one_look = ended["guardrail_tests"][0]
    assert one_look["high"] - one_look["low"] < 0.8 * (row["high"] - row["low"])


def test_a_treatment_with_more_fallbacks_has_not_won(tmp_path):
    result = judged(tmp_path / "log", (4, 4), (0.1, 0.9), fallback=10)
    assert result["verdict"] == "no difference shown"
    # No viewer of the other arm has one, so viewers are compared.
    assert result["reason"].startswith("not won: viewers with answers by fallback +")
    assert "], higher by more than 0.5%" in result["reason"]


def test_a_ratio_does_not_lose_or_win_by_its_denominator(tmp_path):
    result = judged(tmp_path / "more", (4, 6), (0.6, 0.4))
    assert result["verdict"] == "no difference shown"
    assert result["reason"].startswith("not lost: Exposures per viewer +50.")
    assert "% move the ratio, and Join per viewer shows no difference (" in result["reason"]
    # Fewer joins per viewer, too.
    assert judged(tmp_path / "worse", (4, 6), (0.6, 0.2))["verdict"] == "lost"
    # More joins per viewer, and even more exposures.
    result = judged(tmp_path / "better", (4, 8), (0.6, 0.45))
    assert (result["verdict"], "Join per viewer shows the opposite (+" in result["reason"]) == (
        "no difference shown",
        True,
    )
    result = judged(tmp_path / "fewer", (6, 4), (0.4, 0.6))
    assert result["verdict"] == "no difference shown"
    assert "; Exposures per viewer -33." in result["reason"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_denominator_may_have_moved_by_less_before_the_declared_end(ended):
    def row(errors):
        ends = {"low": errors - 1.96, "high": errors + 1.96, "relative_low": None, "relative_high": None}
        return {
            "title": "Sum",
            "bad": False,
            "effect": ends | {"difference": errors, "relative": None},
            "always_valid": ends,
        }

    bound = 1.645 if ended else 1.282
    for sign in (1, -1):
        moved, still = (
            by_denominator(-sign, row(0.0), row(sign * at), ended=ended)
            for at in (bound + 0.01, bound - 0.01)
        )
        assert (len(moved), still) == (1, [])
    # A shift to the other side does not explain it; an equal effect of the numerator is enough.
    assert by_denominator(1, row(0.0), row(3.0), ended=ended) == []
    assert by_denominator(1, row(2.0), row(-3.0), ended=ended) == []


def test_a_small_arm_is_too_early_for_a_verdict_and_what_is_missing_is_said(tmp_path):
    result = judged(tmp_path / "log", (4, 4), (0.1, 0.9), num=590)
    assert (result["verdict"], result["days_needed"]) == ("no difference shown", 1)
    assert result["reason"].startswith("too early: Join per exposure +")
    missing = "a verdict needs 300 viewers in each arm (5 more in 'popular', 5 more in 'model')"
    assert result["reason"].endswith(missing)
    assert result["outlook"] == "the minimum run is reached after 1 more day"


def test_a_viewer_of_very_many_minutes_counts_up_to_a_limit_that_the_report_names(tmp_path):
    exposures = [shown(f"v{i}", i / 64, ("popular", "model")[i % 2]) for i in range(700)]
    events = []
    for i in (*range(0, 700, 2), *range(1, 100, 2)):
        hours = 1_000 if i < 6 and i % 2 == 0 else (0.125, 0.25)[i // 2 % 2]
        events += [did(f"v{i}", "join", i / 64, request_id=f"r{i}"), did(f"v{i}", "leave", i / 64 + hours)]
    result = report(write_rows(tmp_path / "log", exposures, events), LAUNCH)
    minutes = next(metric for metric in result["metrics"] if metric["name"] == "stay_per_viewer")
    assert minutes["capped"] == {"stay": {"at": 15.0, "viewers": 3}}
    assert minutes["control"] == pytest.approx(11.25, abs=0.1)
    assert "stay 15 (viewers above: 3)" in text(result)
    assert "stay 15 (viewers above: 3)" in page(result)


def test_the_limit_of_exposures_is_named_without_a_metric_that_uses_it(tmp_path):
    exposures = [
        shown(f"v{i}", i / 64 + k / 1_000, ("popular", "model")[i % 2])
        for i in range(700)
        for k in range(1 + i % 3)
    ]
    result = report(
        write_rows(tmp_path / "log", exposures, []), replace(LAUNCH, primary_metric="active_days")
    )
    assert result["primary_metric"] == "active_days"
    assert result["guardrail_tests"][0]["capped"] == {"exposures": {"at": 3.0, "viewers": 0}}
    assert "or at the 95th of those above 0 if that is higher: exposures 3 (viewers above: 0)" in text(result)


def test_an_effect_that_a_handful_of_viewers_would_show_has_a_report(tmp_path):
    arms = ("popular", "model")
    exposures = [shown(f"v{i}", i / 64 + k, arms[i % 2]) for i in range(800) for k in range(1 + (i % 5 == 0))]
    log = write_rows(tmp_path / "log", exposures, [did(f"v{i}", "click", i / 64) for i in range(0, 800, 3)])
    declaration = Declared("launch", min_days=0, smallest_effect=1.0, primary_metric="click_per_viewer")
    result = report(log, declaration)
    assert result["guardrail_tests"][0]["name"] == "exposures_per_viewer"
    assert result["days_needed"] == 0


SHOP = read_surface(
    """
name = "shop"
events = ["buy", "return"]
popular = "sales"
[candidate]
topic = "category"
[outcomes]
buy = { event = "buy", within = "1d" }
spend = { event = "buy", sum = "value", cap = 500, unit = "€", within = "1d" }
return = { event = "return", within = "7d", bad = true }
[features]
sales = { kind = "count", entity = "candidate", event = "buy" }
"""
)
SHOPPING = Declared(
    "launch", min_days=0, primary_metric="spend_per_viewer", guardrails={"return_per_viewer": 0.2}
)


def shop(folder, *, spend=1.3, returns=(0.5, 0.5), declaration=SHOPPING, num=8_000, **more):
    """Return the report of a shop whose model raises the value of what viewers buy."""
    rng, shows, events = np.random.default_rng(0), [], []
    for i in range(num):
        hours = i / 200
        known = {"request_id": f"r{i}"}
        shows.append(shown(f"v{i}", hours, ("popular", "model")[i % 2]))
        value = rng.lognormal(3, 0.8) * (spend if i % 2 else 1.0)
        events.append(did(f"v{i}", "buy", hours, value=value, **known))
        if rng.random() < returns[i % 2]:
            events.append(did(f"v{i}", "return", hours, value=None, **known))
    return report(write_rows(folder, shows, events), declaration, SHOP, **more)


def guardrail(result, name="return_per_viewer"):
    return next(row for row in result["guardrail_tests"] if row["name"] == name)


def test_a_shop_decides_on_what_viewers_spend_with_a_guardrail_on_returns(tmp_path):
    result = shop(tmp_path / "log")
    assert [metric["name"] for metric in result["metrics"]] == [
        *(f"{name}_per_{one}" for name in ("buy", "spend", "return") for one in ("viewer", "exposure")),
        *("active_days", "exposures_per_viewer"),
    ]
    assert result["verdict"] == "won"
    assert result["reason"].startswith("Spend per viewer, € +")
    assert guardrail(result)["state"] == "holds"
    assert "20.0% (declared)" in text(result)
    assert "20.0% (declared)" in page(result)


def test_more_spending_has_not_won_if_returns_rise(tmp_path):
    result = shop(tmp_path / "log", returns=(0.4, 0.7))
    assert result["verdict"] == "no difference shown"
    assert result["reason"].startswith("not won: Return per viewer +7")
    assert "], higher by more than 20.0%; Spend per viewer, € +" in result["reason"]
    assert guardrail(result)["state"] == "worse"
    # It is no loss: the primary metric has not fallen.
    assert result["outlook"] == "more days alone need not change this verdict"


def test_a_guardrail_that_is_not_yet_shown_to_hold_names_the_viewers_that_it_takes(tmp_path):
    strict = replace(SHOPPING, guardrails={"return_per_viewer": 0.05})
    result = shop(tmp_path / "log", declaration=strict)
    row = guardrail(result)
    assert (result["verdict"], row["state"]) == ("no difference shown", "not shown")
    assert result["reason"].startswith("not won: Return per viewer ")
    assert (
        f"is not shown to be higher by at most 5.0% (about {row['viewers_needed']:,} viewers"
        in result["reason"]
    )
    assert 10_000 < row["viewers_needed"] < 200_000
    assert result["days_needed"] > 0
    assert result["outlook"].startswith("a guardrail that has not changed is shown to hold with 80 %")
    # At the declared end the interval of one look decides, and fewer viewers are enough.
    ended = report(tmp_path / "log", replace(strict, end_ms=START_MS + 39 * HOUR_MS), SHOP)
    assert guardrail(ended)["viewers_needed"] < 0.6 * row["viewers_needed"]


def test_a_guardrail_without_a_relative_size_is_not_shown_to_hold_and_what_helps_is_said(tmp_path):
    result = shop(tmp_path / "log", returns=(0, 0))
    assert (result["verdict"], guardrail(result)["state"]) == ("no difference shown", "no relative size")
    assert "not won: the guardrail return_per_viewer has no relative size, as it is 0 in" in result["reason"]
    assert "take it out of guardrails" in result["reason"]
    assert "no relative size" in text(result)
    assert "no relative size" in page(result)


def test_a_guardrail_that_one_arm_alone_has_is_judged_by_the_viewers_who_have_any(tmp_path):
    result = shop(tmp_path / "none", returns=(0.5, 0))
    row = guardrail(result)
    assert (result["verdict"], row["state"], row["relative"]) == ("won", "holds", -1.0)
    assert row["few"]["by_share"]
    result = shop(tmp_path / "only the model", returns=(0, 0.5))
    row = guardrail(result)
    assert (result["verdict"], row["state"]) == ("no difference shown", "worse")
    assert (row["relative"], row["relative_high"]) == (None, None)
    assert "∞], higher by more than" in result["reason"]
    assert "∞" in page(result)


def test_of_a_bad_outcome_less_has_won(tmp_path):
    declaration = Declared("launch", min_days=0, primary_metric="return_per_viewer")
    assert shop(tmp_path / "fewer", returns=(0.7, 0.4), declaration=declaration)["verdict"] == "won"
    assert shop(tmp_path / "more", returns=(0.4, 0.7), declaration=declaration)["verdict"] == "lost"


def test_a_metric_that_the_surface_does_not_give_is_refused_with_the_name_that_is_meant(tmp_path):
    log = write_rows(tmp_path / "log", [shown("ann", 1), shown("bob", 2, "popular")])
    wrong = Declared("launch", guardrails={"hides": 0.1}, source="cluster.yaml")
    with pytest.raises(
        TabrankError, match=r"cluster.yaml: experiment.guardrails.hides: unknown metric 'hides'"
    ):
        report(log, wrong)


def test_where_few_viewers_have_any_a_limit_is_among_them():
    values = np.zeros(1_000)
    values[:5] = [1, 2, 3, 4, 50]
    most, limits = capped({"minutes": values, "active_days": values}, values >= 0)
    assert limits == {"minutes": {"at": 50.0, "viewers": 0}}
    assert most["active_days"] is values
    assert capped({"minutes": np.zeros(9)}, slice(None))[1]["minutes"]["at"] == 0


def test_an_arm_whose_model_was_replaced_is_warned_of_with_the_remedy(tmp_path):
    exposures = [
        shown(f"v{i}", i, ("popular", "model")[i % 2], model=("new" if i > 40 else "old") if i % 2 else None)
        for i in range(60)
    ]
    # No model ranks a fallback, in any arm.
    exposures.append(shown("v1", 59.5, rung="fallback", model=None))
    log = write_rows(tmp_path / "log", exposures, [did("v1", "join", 1.1), did("v3", "join", 3.1)])
    done = run("report", "--log", log, "--experiment", "launch", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["model"] for one in result["ranked_by"]["model"]] == ["old", "new"]
    assert [one["model"] for one in result["ranked_by"]["popular"]] == ["no model"]
    (warning,) = result["warnings"]
    assert warning.startswith("the treatment changed: arm 'model' ranked by old (20 exposures")
    assert done.stdout.splitlines()[1] == f"warning: {warning}"
    assert "Warning: the treatment changed" in (tmp_path / "out" / "report.html").read_text()
    since = START_MS + 39 * HOUR_MS + 1_000
    assert f'`start: "{utc(since)}"`' in warning
    assert report(log, Declared("launch", start_ms=since))["warnings"] == []


def test_an_arm_whose_weights_were_changed_is_warned_of_with_the_remedy(tmp_path):
    weights = [json.dumps({"join": 1.0, "stay": stay}) for stay in (0.02, 0.08)]
    exposures = [
        shown(f"v{i}", i, ("popular", "model")[i % 2], model="m" if i % 2 else None)
        | {"weights": weights[i > 40] if i % 2 else None}
        for i in range(60)
    ]
    result = report(write_rows(tmp_path / "log", exposures, [did("v1", "join", 1.1)]), LAUNCH)
    ranked = result["ranked_by"]["model"]
    assert [one["weights"]["stay"] for one in ranked] == [0.02, 0.08]
    assert [one["weights"] for one in result["ranked_by"]["popular"]] == [{}]
    (warning,) = result["warnings"]
    assert "arm 'model' ranked by m with the weights join 1, stay 0.02 (20 exposures" in warning
    assert warning.endswith("to analyse only m with the weights join 1, stay 0.08")
    assert "m with the weights join 1, stay 0.02, m with the weights join 1, stay 0.08" in text(result)


def test_an_arm_whose_rules_were_changed_is_warned_of_with_the_remedy(tmp_path):
    rules = [["boost by +0.1 where candidate.partner = yes"], []]
    exposures = [
        shown(f"v{i}", i, ("popular", "model")[i % 2], model="m" if i % 2 else None)
        | {"rules": [*rules[i > 40], "spread candidate.host"] if i % 2 else []}
        for i in range(60)
    ]
    result = report(write_rows(tmp_path / "log", exposures, [did("v1", "join", 1.1)]), LAUNCH)
    ranked = result["ranked_by"]["model"]
    assert [one["rules"] for one in ranked] == [
        [*rules[0], "spread candidate.host"],
        ["spread candidate.host"],
    ]
    assert [one["rules"] for one in result["ranked_by"]["popular"]] == [[]]
    (warning,) = result["warnings"]
    both = "boost by +0.1 where candidate.partner = yes; spread candidate.host"
    assert f"arm 'model' ranked by m with the rules {both} (20 exposures" in warning
    assert warning.endswith("to analyse only m with the rules spread candidate.host")


def test_a_default_primary_metric_is_reported(won, tmp_path):
    undeclared = redeclare(won, tmp_path / "log", {})
    assert "primary metric, join_per_viewer, is the default" in text(report(undeclared, Declared("launch")))
    assert "is the default" not in text(
        report(won, Declared("launch", primary_metric="click_per_viewer", source="cluster.yaml"))
    )


def test_an_arm_in_two_files_has_one_code(tmp_path):
    log = write_rows(tmp_path / "log", [shown(f"v{i}", i, f"arm{i}") for i in range(60)])
    again = pq.read_table(next((log / "exposures").iterdir()))
    for column in ("request_id", "seq"):
        at = again.schema.get_field_index(column)
        values = pa.array([f"s{i}" if column == "request_id" else 100 + i for i in range(60)])
        again = again.set_column(at, column, values)
    pq.write_table(again, log / "exposures" / f"{100:020d}.parquet")
    exposures = read_exposures(log, "launch").rows
    assert exposures["arm"].value_counts().to_dict() == {f"arm{i}": 2 for i in range(60)}


def test_a_log_may_hold_many_models_and_earlier_experiments(tmp_path):
    early = [shown(f"v{i}", i / 9, "model", experiment=f"e{i}", model=f"m{i}") for i in range(300)]
    late = [shown(f"v{i}", 40, ("popular", "model")[i % 2], model=f"m{i}") for i in range(300)]
    exposures = read_exposures(write_rows(tmp_path / "log", early + late), "launch").rows
    assert (exposures["experiment"].nunique(), exposures["model"].nunique()) == (301, 300)


def test_where_no_arm_is_known_to_be_popular_one_has_to_be_named(tmp_path):
    log = write_rows(tmp_path / "log", [shown(f"v{i}", i, ("old", "new")[i % 2]) for i in range(9)])
    with pytest.raises(
        TabrankError, match="--arms: name the control and the treatment to compare; the arms of launch are"
    ):
        report(log, LAUNCH)
    assert report(log, LAUNCH, compare=("old", "new"))["treatment"] == "new"


def test_of_three_arms_the_two_that_are_named_are_compared(tmp_path):
    arms = ("popular", "model", "shuffle")
    log = write_rows(tmp_path / "log", [shown(f"v{i}", i / 10, arms[i % 3], share=1 / 3) for i in range(60)])
    with pytest.raises(TabrankError, match="--arms: name the control and the treatment"):
        report(log, LAUNCH)
    result = report(log, LAUNCH, compare=("popular", "shuffle"))
    assert result["sample_ratio"]["viewers"] == {"popular": 20, "shuffle": 20}
    assert result["left_out"]["viewers_of_other_arms"] == 20


def test_what_a_service_has_written_is_read(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    exposures, events = read_exposures(service.folder / "log", "launch"), read_events(service.folder / "log")
    written = service.log()
    ours = [row for row in written.exposures.to_pylist() if row["traffic"] != "test" and row["viewer"]]
    assert len(exposures.rows) == len(ours)
    assert exposures.num_test == sum(row["traffic"] == "test" for row in written.exposures.to_pylist()) > 0
    assert set(exposures.rows["arm"].dropna()) == {"model"}
    assert "full" in set(exposures.rows["rung"])
    assert len(events) == sum(row["viewer"] is not None for row in written.events.to_pylist())


def test_what_an_event_was_worth_is_read_from_what_a_service_has_written(tmp_path, log_folder):
    async def buy(service):
        sold = event("sold", "join", "a", "ann", 70_000, value=12.5)
        await service.events(sold, event("given", "join", "b", "ann", 71_000))

    service = Logging(tmp_path, log_folder)
    service.run(buy)
    values = read_events(service.folder / "log")["value"].tolist()
    assert values[-2:] == pytest.approx([12.5, np.nan], nan_ok=True)


def test_without_a_difference_the_report_names_the_days_needed(tmp_path):
    result = report(write_experiment(tmp_path / "log"), LAUNCH)
    assert result["verdict"] == "no difference shown"
    assert result["days_needed"] > 10
    assert f"after {result['days_needed']:,} more days" in result["outlook"]
    assert result["outlook"].startswith("an effect of 2.0% shows with 80 % probability at a look after ")
    join_rate = next(metric for metric in result["metrics"] if metric["name"] == "join_per_viewer")
    assert join_rate["power"] < 0.2 < join_rate["detectable"] * 5


def test_at_the_declared_end_the_fixed_horizon_counts(tmp_path):
    log = write_experiment(tmp_path / "log", uplift=-0.15, num_viewers=1_000)
    known = {"start_ms": START_MS, "primary_metric": "click_per_viewer", "min_days": 2}
    early = report(log, Declared("launch", **known))
    ended = report(log, Declared("launch", end_ms=START_MS + 4 * DAY_MS - 10 * HOUR_MS, **known))
    assert (early["verdict"], ended["verdict"]) == ("no difference shown", "lost")
    assert ended["window"]["ended"]
    assert "at the declared end" in ended["reason"]


def test_a_sample_ratio_mismatch_blocks_the_report(tmp_path):
    log = write_experiment(tmp_path / "log", split=0.6, uplift=0.4)
    done = run("report", "--log", log, "--experiment", "launch", "--json")
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert (result["verdict"], result["metrics"]) == ("invalid", [])
    assert "sample ratio mismatch" in result["reason"]
    assert "no effect is shown" in text(result)


def test_an_intended_uneven_split_is_valid(tmp_path):
    assert report(write_experiment(tmp_path / "log", split=0.8, share=0.8), LAUNCH)["verdict"] != "invalid"


def test_viewers_who_saw_two_arms_make_it_invalid(tmp_path):
    result = report(write_experiment(tmp_path / "log", crossing=3), LAUNCH)
    assert result["verdict"] == "invalid"
    assert result["sample_ratio"]["crossing_viewers"] == 3
    assert "two arms" in result["reason"]


def test_an_arm_without_viewers_makes_it_invalid(tmp_path):
    log = write_rows(tmp_path / "log", [shown(f"v{i}", i, "model") for i in range(5)])
    arms = (Arm("model", "current", 0.5), Arm("popular", "popular", 0.5))
    declaration = Declared("launch", arms=arms, source="cluster.yaml")
    result = report(log, declaration)
    assert (result["verdict"], result["metrics"]) == ("invalid", [])
    assert "arm 'popular' has 0 viewers" in result["reason"]


def test_the_verdict_comes_first(won, tmp_path, config):
    known = ("--experiment", "launch", "--config", config)
    done = run("report", "--log", won, *known, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("won: Join per viewer +")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("<strong>model won against popular</strong>") < page.index("Sample ratio")
    assert "No effect shown: Active days per viewer, Exposures per viewer.</p>" in page
    # No table is wider than a page of 1,216 pixels.
    assert max(row.count("<th ") for row in page.split("<tr>")) <= 8
    assert '<dd class="value">as planned</dd>' in page
    read = Page(page)
    assert read.links == ["report.json"]
    assert read.tags.count("figure") == len(METRICS)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"] == "won"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--experiment", "lunch"), "it has launch"),
        (("--experiment", "launch", "--arms", "best", "model"), "the arms of launch are model, popular"),
        (("--experiment", "launch", "--arms", "model", "model"), "--arms model model: name the control"),
    ],
)
def test_invalid_arguments_are_refused_in_a_sentence(won, arguments, message):
    done = run("report", "--log", won, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_experiment_that_starts_after_its_exposures_is_refused(won):
    late = Declared("launch", start_ms=START_MS + 99 * DAY_MS, source="cluster.yaml")
    with pytest.raises(TabrankError, match=rf"from {utc(late.start_ms)} \(start in cluster.yaml\); correct"):
        report(won, late)


def test_an_end_before_all_exposures_is_named_with_what_sets_it(won):
    early = Declared("launch", end_ms=START_MS - HOUR_MS, source="cluster.yaml")
    with pytest.raises(
        TabrankError, match=rf"before {utc(early.end_ms)} \(end in the log's declaration\); correct"
    ):
        report(won, early)


@pytest.mark.parametrize("per", ["viewer", "exposure"])
def test_a_declared_primary_metric_without_events_does_not_vary(tmp_path, per):
    rows = [shown(f"{arm}{i}", 1, arm) for i in range(2) for arm in ("popular", "model")]
    declaration = Declared("launch", primary_metric=f"stay_per_{per}", source="cluster.yaml")
    result = report(write_rows(tmp_path / "log", rows), declaration)
    assert result["reason"].startswith(f"too early: Stay per {per}, minutes: it does not vary in either arm")
    assert f"Stay per {per}, minutes" in text(result).split("Without events in the log: ")[1]


def test_a_missing_log_is_refused(tmp_path):
    done = run("report", "--log", tmp_path / "missing", "--experiment", "launch")
    assert done.exit_code == 2
    assert "missing" in done.stderr


def test_the_declaration_is_read_from_the_cluster_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """
applications:
- import_path: serve.app:build
  deployments:
  - name: FeatureFetch
    user_config:
      experiment:
        name: launch
        salt: s
        start: "2026-01-02T00:00:00Z"
        primary_metric: click_per_viewer
        smallest_effect: 0.05
        arms:
          heuristic: {scorer: popular, share: 0.4}
          model: {scorer: current, share: 0.6}
"""
    )
    read, surface = declared(path, "launch")
    assert (read.popular, read.primary_metric, read.smallest_effect) == (
        "heuristic",
        "click_per_viewer",
        0.05,
    )
    assert {arm.name: arm.share for arm in read.arms} == {"heuristic": 0.4, "model": 0.6}
    assert read.start_ms == np.datetime64("2026-01-02", "ms").astype(int)
    assert surface is None
    assert declared(path, "other") == (Declared("other"), None)


INGRESS = (
    "applications: [{import_path: 'serve.app:build', deployments: [{name: FeatureFetch, user_config: %s}]}]"
)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("applications: {spaces: 1}", "applications: {'spaces': 1} must be a list"),
        ("applications: [spaces]", "applications[0]"),
        ("applications: [{import_path: 'serve.app:build', deployments: 3}]", "deployments: 3 must be a list"),
        (INGRESS % "7", "user_config"),
        (INGRESS % "{experiment: launch}", "user_config.experiment"),
        (INGRESS % "{experiment: {name: launch, salt: s, arms: 3}}", "experiment.arms"),
        ("applications: []\napplications: []", "comes twice"),
        ("applications: [", "not valid YAML"),
        ("- applications", "a mapping"),
        (None, "give the cluster.yaml that declares launch"),
    ],
)
def test_a_cluster_file_that_cannot_be_read_is_refused_in_a_sentence(won, tmp_path, written, message):
    path = tmp_path / "mine.yaml"
    if written is not None:
        path.write_text(written)
    done = run("report", "--log", won, "--experiment", "launch", "--config", path)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_file_does_not_declare_is_taken_from_the_log(won, config):
    done = run("report", "--log", won, "--experiment", "launch", "--config", config)
    assert done.exit_code == 0, done.stderr
    assert "declares no experiment 'launch': using the log alone" in done.stderr


def test_a_file_without_the_surface_is_refused(won, tmp_path, config):
    path = tmp_path / "cluster.yaml"
    path.write_text(config.read_text() + APPLICATION % ("spaces", "another"))
    assert declared(path, "launch") == (Declared("launch"), None)
    known = ("report", "--log", won, "--experiment", "launch", "--config", path)
    done = run(*known)
    assert (done.exit_code, "names no surface; add that which was served" in done.stderr) == (2, True)
    arms = "{model: {scorer: current, share: 0.5}, popular: {scorer: popular, share: 0.5}}"
    path.write_text("applications:\n" + APPLICATION % ("missing.toml", f"launch, salt: s, arms: {arms}"))
    assert "missing.toml: no such surface file" in run(*known).stderr
