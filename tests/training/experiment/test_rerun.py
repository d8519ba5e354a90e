"""Test the continued simulation at a service over HTTP: its log and the true effects agree."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from listening import SURFACE, Service, command, write_model
from typer.testing import CliRunner

from serve.config.settings import Arm, Experiment
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.model.artifact import load as load_artifact
from training.__main__ import app
from training.audit.http_replay import ReplayClient
from training.experiment.rerun.drive import drive
from training.experiment.rerun.service import InProcessArm
from training.experiment.rerun.simulate import score_of
from training.experiment.rerun.simulator_state import SimulatorState
from training.experiment.rerun.truth import effects
from training.world.simulate import simulate

DAYS, RANKINGS = 0.1, 60
TABNET, POPULAR = Arm("tabnet", "current", 0.5), Arm("popular", "popular", 0.5)
RULE = Arm("rule", "baseline", 0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with a simulated log and an artifact for it."""
    home = tmp_path_factory.mktemp("experiment")
    simulate(home / "a", rows=3_300, viewers=400, days=0.1)
    write_model(home / "model", home / "a")
    return home


def served_by(home, folder, *arms):
    return Service(home, folder, experiment=Experiment("original", "s", arms))


def experiment(url, *more, log, code=0):
    days = ("--days", DAYS, "--rankings", RANKINGS, "--seed", 3)
    return command("experiment", "simulate", "--log", log, "--url", url, *days, *more, code=code)


@pytest.fixture(scope="module")
def done(home, tmp_path_factory):
    """Return the summary of an experiment of both arms, its folder, and the service's log."""
    folder = tmp_path_factory.mktemp("service")
    service = served_by(home, folder, TABNET, POPULAR)
    with service.listening() as url:
        more = ("--model", home / "model", "--out", folder / "out")
        found = experiment(url, *more, log=home / "a")
    return found, folder / "out", read_log(folder / "a", SURFACE)


def test_the_log_of_the_service_holds_the_exposures_of_both_arms(home, done):
    found, out, log = done
    past = read_log(home / "a", SURFACE)
    truth = pq.read_table(out / "truth.parquet").to_pylist()
    rows = log.exposures.to_pylist()[len(past.exposures) :]
    assert found["held"] is True
    assert [row["request_id"] for row in rows] == [row["request_id"] for row in truth]
    assert [len(row["candidates"]) for row in rows] == [len(row["p_click"]) for row in truth]
    served = pq.read_table(out.parent / "a" / "exposures", columns=["request_id", "arm"]).to_pylist()
    assert {row["request_id"]: row["arm"] for row in served} == {
        row["request_id"]: row["arm"] for row in truth
    }
    assert Counter(row["arm"] for row in truth) == found["exposures"]
    assert min(found["exposures"].values()) > 10
    assert len(log.events) == len(past.events) + found["events"]
    assert set(log.events["candidate"].to_pylist()) <= set(log.candidates["id"].to_pylist())


def test_the_popular_arm_shows_the_largest_audience_first(done):
    _, out, log = done
    arms = {row["request_id"]: row["arm"] for row in pq.read_table(out / "truth.parquet").to_pylist()}
    events = sorted((e for e in log.events.to_pylist() if e["kind"] != "click"), key=lambda e: e["ts_ms"])
    audience, at, compared = defaultdict(set), 0, 0
    for row in log.exposures.to_pylist():
        while at < len(events) and events[at]["ts_ms"] < row["ts_ms"]:
            viewers = audience[events[at]["candidate"]]
            (viewers.add if events[at]["kind"] == "join" else viewers.discard)(events[at]["viewer"])
            at += 1
        if arms.get(row["request_id"]) == "popular":
            keys = [(-len(audience[name]), -int(name[1:])) for name in row["candidates"]]
            assert keys == sorted(keys)
            compared += max(len(audience[name]) for name in row["candidates"]) > 0
    assert compared > 10


def test_the_truth_is_the_expectation_of_the_data_generating_process(done):
    found, out, _ = done
    truth = pq.read_table(out / "truth.parquet").to_pylist()
    assert json.loads((out / "truth.json").read_text()) == found
    for arm, values in found["shown"]["arms"].items():
        mine = [row for row in truth if row["arm"] == arm]
        for name, chance in (("clicks", "p_click"), ("joins", "p_join")):
            total = sum(np.dot(row["examination"], row[chance]) for row in mine)
            assert values["expected"][f"{name}_per_exposure"] == pytest.approx(total / len(mine))
            assert values["expected"][f"{name}_per_viewer"] == pytest.approx(total / values["viewers"])
    both = [arm["expected"]["clicks_per_exposure"] for arm in found["shown"]["arms"].values()]
    effect = found["shown"]["effect"]["tabnet"]
    assert abs(effect["clicks_per_exposure"]["absolute"]) == pytest.approx(abs(both[0] - both[1]))
    assert effect["daily_active_viewers"] == {"absolute": 0.0, "relative": 0.0}


def test_each_arm_alone_ranks_all_visits(done):
    alone = done[0]["alone"]
    assert {arm: values["exposures"] for arm, values in alone["arms"].items()} == {
        "tabnet": RANKINGS,
        "popular": RANKINGS,
    }
    assert set(alone["effect"]) == {"tabnet"}


@pytest.mark.no_ray
@pytest.mark.integration
@pytest.mark.parametrize("arm", [TABNET, POPULAR, RULE])
def test_an_arm_in_process_ranks_as_a_service_of_that_arm_does(home, tmp_path, arm):
    simulators = [SimulatorState.after(home / "a", DAYS, 0) for _ in range(2)]
    visits = simulators[0].visits(RANKINGS, 0)
    service = served_by(home, tmp_path, Arm(arm.name, arm.scorer, 1.0))
    with service.listening() as url, closing(ReplayClient(url)) as client:
        theirs = drive(simulators[0], visits, client, 0)
    replay = Replay(Schema(SURFACE), read_log(home / "a", SURFACE))
    replay.finish()
    score = score_of(vars(arm), load_artifact(home / "model"), SURFACE)
    ours = drive(simulators[1], visits, InProcessArm(arm.name, replay.state, score), 0)
    assert ours.record.flat("joined").sum() > 5
    for mine, yours in zip(ours.record.shown, theirs.record.shown, strict=True):
        assert mine.tolist() == yours.tolist()


def test_an_effect_on_a_control_of_zero_has_no_relative_size():
    arms = {
        "old": {"expected": {"joins": 0.0, "clicks": 2.0}},
        "new": {"expected": {"joins": 1.0, "clicks": 3.0}},
    }
    effect = effects(arms, "old")["new"]
    assert effect["clicks"] == {"absolute": 1.0, "relative": 0.5}
    assert effect["joins"] == {"absolute": 1.0, "relative": None}


def test_invalid_settings_are_refused_with_the_remedy(done, home, tmp_path):
    (tmp_path / "nothing").mkdir()
    served = done[1].parent / "a"
    with served_by(home, tmp_path, TABNET, POPULAR).listening() as url:
        assert "a service has written to it since" in experiment(url, log=served, code=2)
        assert "world.json" in experiment(url, log=tmp_path / "nothing", code=2)
    assert "start the service" in experiment("http://127.0.0.1:9", log=home / "a", code=2)


@pytest.mark.parametrize("option", ["--days", "--rankings"])
def test_an_experiment_of_no_length_is_refused(home, option):
    given = ("experiment", "simulate", "--log", str(home / "a"), option, "0")
    done = CliRunner().invoke(app, given)
    assert (done.exit_code, f"Invalid value for '{option}'" in done.stderr) == (2, True)


@pytest.mark.no_ray
@pytest.mark.integration
def test_a_service_of_one_arm_is_refused(home, tmp_path):
    with served_by(home, tmp_path, Arm("tabnet", "current", 1.0)).listening() as url:
        assert "give two of them shares" in experiment(url, log=home / "a", code=2)


def test_a_continued_world_keeps_its_spaces_and_its_past(home):
    simulator = SimulatorState.after(home / "a", DAYS, 0)
    spaces, before = simulator.world.spaces, simulator.provenance.world().spaces
    assert (spaces.started_ms[: len(before)] == before.started_ms).all()
    assert (spaces.started_ms[len(before) :] >= simulator.provenance.end_ms).all()
    assert len(spaces) > len(before)
    for host in np.unique(spaces.host):
        mine = np.flatnonzero(spaces.host == host)
        assert (spaces.started_ms[mine][1:] > spaces.ends_ms[mine][:-1]).all()
    queued = simulator.take(simulator.world.end_ms)
    assert min(record.ts_ms for record in queued) >= simulator.provenance.end_ms
    assert [record.ts_ms for record in queued] == sorted(record.ts_ms for record in queued)


@pytest.mark.integration
@pytest.mark.no_ray
def test_exploration_estimates_the_reward_of_the_served_artifact(home, tmp_path):
    drawing = Arm("tabnet", "current", 0.5, explore=1.0)
    with served_by(home, tmp_path, drawing, POPULAR).listening() as url:
        days = ("--days", 0.5, "--rankings", 900, "--seed", 4)
        command("experiment", "simulate", "--log", home / "a", "--url", url, *days)
    found = command(
        "experiment", "offline", "--log", tmp_path / "a", "--model", home / "model", "--event", "click"
    )
    assert found["exposures"] > 300
    # The artifact is the served one.
    assert found["verdict"] == "no difference shown"
