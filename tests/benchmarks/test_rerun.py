"""Test the continued simulation at a service over HTTP: its log and the true effects agree."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.rerun.drive import TIMEOUT_S, drive
from benchmarks.rerun.simulate import expected
from benchmarks.rerun.simulate import simulate as continued
from benchmarks.rerun.simulator_state import SimulatorState
from serve.client import Client
from serve.config.settings import Arm, Experiment
from serve.contract.errors import TabrankError
from serve.log.reader import read_log, read_table
from tests.support.simulated_service import SURFACE, Service, command, write_model
from training.world.simulate import simulate

DAYS, RANKINGS = 0.1, 60
TABNET, POPULAR = Arm("tabnet", "current", 0.5), Arm("popular", "popular", 0.5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folder with a simulated log and an artifact for it."""
    home = tmp_path_factory.mktemp("experiment")
    simulate(home / "a", rows=3_300, viewers=400, days=0.1)
    write_model(home / "model", home / "a")
    return home


def served_by(home, folder, *arms):
    return Service(home, folder, experiment=Experiment("original", "s", arms))


def rerun(url, log, out):
    return continued(log, url, out, days=DAYS, rankings=RANKINGS)


@pytest.fixture(scope="module")
def done(home, tmp_path_factory):
    """Return the folder of a service, its log, and what it served in both arms."""
    folder = tmp_path_factory.mktemp("service")
    simulator = SimulatorState.after(home / "a", DAYS)
    with (
        served_by(home, folder, TABNET, POPULAR).listening() as url,
        Client(url, timeout_s=TIMEOUT_S) as client,
    ):
        served = drive(simulator, simulator.visits(RANKINGS), client)
    return folder, read_log(folder / "a", SURFACE), served


def exposures_of(folder):
    """Return ids, arms and candidates of the exposures that a service has added to its log."""
    table = read_table(folder / "a", "exposures", ["request_id", "arm", "candidates"])[1]
    return table.slice(len(table) - RANKINGS).to_pylist()


def test_the_log_of_the_service_holds_the_exposures_of_both_arms(home, done):
    folder, log, served = done
    past = read_log(home / "a", SURFACE)
    rows = exposures_of(folder)
    assert len(log.exposures) == len(past.exposures) + RANKINGS
    assert [row["arm"] for row in rows] == served.arm
    shown = [[f"s{space:07d}" for space in spaces.tolist()] for spaces in served.record.shown]
    assert [row["candidates"] for row in rows] == shown
    assert min(Counter(served.arm).values()) > 10
    assert set(served.rung) == {"full"}
    assert len(log.events) == len(past.events) + served.num_events
    assert set(log.events["candidate"].to_pylist()) <= set(log.candidates["id"].to_pylist())


def test_the_popular_arm_shows_the_largest_audience_first(done):
    folder, log, _ = done
    arms = {row["request_id"]: row["arm"] for row in exposures_of(folder)}
    events = sorted(
        (e for e in log.events.to_pylist() if e["kind"] in ("join", "leave")), key=lambda e: e["ts_ms"]
    )
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


def test_the_truth_is_the_expectation_of_the_data_generating_process(home, done):
    *_, served = done
    truth = served.record.truth(SimulatorState.after(home / "a", DAYS).world)
    for arm in ("tabnet", "popular"):
        mine = [i for i, name in enumerate(served.arm) if name == arm]
        found = expected(served, arm)
        assert (found["exposures"], found["viewers"]) == (len(mine), len(set(served.viewer[mine].tolist())))
        for name, chance in (("clicks", "p_click"), ("joins", "p_join")):
            looked, chances = (truth[column].to_pylist() for column in ("examination", chance))
            total = sum(np.dot(looked[i], chances[i]) for i in mine)
            assert found[f"{name}_per_exposure"] == pytest.approx(total / len(mine))
            assert found[f"{name}_per_viewer"] == pytest.approx(total / found["viewers"])


@pytest.mark.no_ray
@pytest.mark.integration
def test_the_effect_of_the_model_is_written_and_a_log_is_continued_once(home, tmp_path):
    with served_by(home, tmp_path, TABNET, POPULAR).listening() as url:
        found = rerun(url, home / "a", tmp_path / "out")
        with pytest.raises(TabrankError, match="already has"):
            rerun(url, home / "a", tmp_path / "again")
    assert (found["held"], found["by_rung"]) == (True, {"full": RANKINGS})
    assert json.loads((tmp_path / "out" / "truth.json").read_text()) == found
    joins = [found["arms"][arm]["joins_per_viewer"] for arm in ("tabnet", "popular")]
    assert found["effect"]["joins_per_viewer"] == pytest.approx(joins[0] / joins[1] - 1)


def test_what_cannot_be_continued_is_refused_with_the_remedy(home, tmp_path):
    (tmp_path / "nothing").mkdir()
    with (
        served_by(home, tmp_path, TABNET, POPULAR).listening() as url,
        pytest.raises(TabrankError, match=r"world\.json"),
    ):
        rerun(url, tmp_path / "nothing", tmp_path / "out")
    given = ("--log", home / "a", "--url", "http://127.0.0.1:9", "--out", tmp_path / "out")
    done = CliRunner().invoke(app, ["rerun", *map(str, given)])
    assert (done.exit_code, "start the service" in done.stderr) == (2, True)


@pytest.mark.no_ray
@pytest.mark.integration
def test_a_service_of_other_arms_is_refused(home, tmp_path):
    with (
        served_by(home, tmp_path, Arm("tabnet", "current", 1.0)).listening() as url,
        pytest.raises(TabrankError, match=r"has the arms tabnet.*benchmarks/rerun/cluster\.yaml"),
    ):
        rerun(url, home / "a", tmp_path / "out")


def test_a_continued_world_keeps_its_spaces_and_its_past(home):
    simulator = SimulatorState.after(home / "a", DAYS)
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
    simulator = SimulatorState.after(home / "a", DAYS)
    with (
        served_by(home, tmp_path, drawing, POPULAR).listening() as url,
        Client(url, timeout_s=TIMEOUT_S) as client,
    ):
        drive(simulator, simulator.visits(150), client)
    found = command("experiment", "offline", "--log", tmp_path / "a", "--model", home / "model")
    assert found["exposures"] > 40
    # The artifact is the served one.
    assert found["verdict"] == "no difference shown"
