"""Tests of `loadtest scale`: its `cluster.yaml`, the verdict on a doubled load, and a brief run."""

from __future__ import annotations

import csv
import json
import re

import pytest
import yaml

from loadtest.errors import LoadtestError
from loadtest.report.scale import scale_summary
from loadtest.scenarios.scale import (
    APPLICATION,
    AUTOSCALING,
    PARTS,
    judge_step,
    run_scale,
    throttled,
)
from loadtest.targets.workspace import Workspace
from tests.support.load_results import moment
from tests.support.loadtest_command import ROOT, left, run_loadtest

SHIPPED = ROOT / "cluster.yaml"


def test_the_measured_file_is_the_given_one_with_the_throttled_scorer(tmp_path):
    throttled(Workspace(tmp_path), SHIPPED, AUTOSCALING["step"])
    (application,) = yaml.safe_load((tmp_path / "cluster.yaml").read_text())["applications"]
    shipped = yaml.safe_load(SHIPPED.read_text())["applications"][0]["deployments"][1]["autoscaling_config"]
    assert application["import_path"] == APPLICATION
    assert (
        application["deployments"][1]["autoscaling_config"]
        == shipped | {"min_replicas": 1} | AUTOSCALING["step"]
    )


def test_a_deployment_that_does_not_scale_is_refused(tmp_path):
    document = yaml.safe_load(SHIPPED.read_text())
    del document["applications"][0]["deployments"][1]["autoscaling_config"]
    config = tmp_path / "fixed.yaml"
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(LoadtestError, match=r"fixed\.yaml: Scorer has no autoscaling_config"):
        throttled(Workspace(tmp_path), config, {})


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_not_there_is_told_before_anything_is_prepared(tmp_path, part):
    lines = []
    with pytest.raises(LoadtestError, match=r"none\.yaml: cannot be read"):
        run_scale(
            Workspace(tmp_path / "work"),
            tmp_path / "none.yaml",
            [part],
            5,
            15.0,
            tmp_path / "out",
            lines.append,
        )
    assert lines == []


def judged(counts, **changes):
    step = {"p99_recovered_s": 6, "full_recovered_s": 7}
    report = {
        "steps": [step | {key: changes.pop(key) for key in list(changes) if key in step}],
        "phases": [],
        "requests": 100,
        "errors": 0,
        "error_kinds": {},
        "generator_late_ms_p99": 1.0,
        "slo": {"generator_late_ms_p99": 10.0},
    }
    moments = [moment(second, replicas={"Scorer": number}) for second, number in enumerate(counts)]
    return judge_step(report | changes, moments, up_s=3, down_s=23)


GOOD = [1] * 3 + [1] * 8 + [2] * 12 + [2] * 3


def test_replicas_and_p99_in_time_hold():
    found = judged(GOOD)
    assert (found["verdict"], found["reasons"]) == ("held", [])
    assert (found["replicas_up_s"], found["replicas_held"], found["replicas_after"]) == (8, 2, 2)
    measured = "more replicas 8 s after the step, p99 within its limit 6 s after it; [1] → 2 → 2 Scorers"
    assert measured in found["measured"]
    report = {"verdict": "held", "seconds": 26.0, "parts": {"step": found}}
    assert scale_summary(report).splitlines()[1].startswith("  step: held; 0 of 100 requests failed; ")


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ([1] * 26, {}, "more replicas ran never after the step"),
        ([1] * 14 + [2] * 12, {}, "more replicas ran 11 s after the step"),
        ([1, 1, *[2] * 9, *[3] * 15], {}, r"replicas changed before the step: \[1, 2\]"),
        (GOOD[:18] + [1] * 8, {}, "a replica was removed while the load was still doubled"),
        (GOOD, {"p99_recovered_s": None}, "the p99 recovered never after the step"),
        (GOOD, {"errors": 3, "error_kinds": {"reset": 3}}, "3 of 100 requests failed: 3 reset"),
    ],
)
def test_what_does_not_hold_is_said(counts, changes, message):
    found = judged(counts, **changes)
    assert found["verdict"] == "not held"
    (reason,) = found["reasons"]
    assert re.search(message, reason)


def test_a_late_generator_voids_only_what_did_not_hold():
    assert judged([1] * 26, generator_late_ms_p99=20.0)["verdict"] == "void"
    assert judged(GOOD, generator_late_ms_p99=20.0)["verdict"] == "held"


@pytest.mark.integration
@pytest.mark.proof
def test_replicas_come_and_go_under_load_and_no_request_fails(bench_work, tmp_path):
    out = tmp_path / "out"
    short = ("--part", "replicas", "--cycles", "1", "--hold", "10", "--out", out)
    code, report, messages = run_loadtest(ROOT, "scale", "--work", bench_work.path, *short)
    assert code == 0, messages[-3_000:]
    part = report["parts"]["replicas"]
    assert report["verdict"] == "held"
    assert (part["errors"], part["error_kinds"]) == (0, {})
    assert part["requests"] == pytest.approx(0.6 * report["capacity_rps"] * 20, rel=0.02)
    assert [change["replicas"] for change in part["changes"]] == [3, 1]
    assert json.loads((out / "report.json").read_text()) == report
    assert "0 of " in (out / "report.html").read_text()
    assert 'class="plot"' in (out / "replicas" / "report.html").read_text()
    rows = list(csv.DictReader((out / "replicas" / "timeline.csv").read_text().splitlines()))
    for name in ("FeatureFetch_replicas", "Scorer_replicas"):
        seen = [row[name] for row in rows]
        assert (seen[0], max(seen), seen[-1]) == ("1", "3", "1")
    assert left(bench_work) == []
