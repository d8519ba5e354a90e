"""Test the replay of a log over HTTP: its scores are the evaluation's, and its log holds."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.config.settings import Arm, Experiment
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.log.snapshots import set_truncation_point, write
from serve.stores.factory import open_store
from tests.support.simulated_service import SURFACE, THREE, Service, command, write_model
from tests.support.stub_artifact import MODEL
from training.data.dataset import build
from training.data.split import split
from training.examination.examination import Examination
from training.world.simulate import simulate


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a simulated log in two parts, and an artifact for it."""
    home = tmp_path_factory.mktemp("replay")
    simulate(home / "log", rows=6_000, viewers=60, days=0.15)
    split(home / "log", 0.4, home / "a", home / "b")
    looked = Examination("learned", (1.0, 0.7, 0.4), (0.0, 0.1, 0.1), 500)
    write_model(home / "model", home / "a", examination=looked)
    return home


@pytest.fixture
def service(home, tmp_path):
    return Service(home, tmp_path)


def test_a_replayed_log_has_the_evaluations_scores_and_passes_the_audit(home, service):
    model, history = ("--model", home / "model"), ("--history", home / "a")
    with service.listening() as url:
        found = command("replay", "--log", home / "b", "--url", url, *model, *history)
    evaluated = command("evaluate", *model, *history, "--log", home / "b")
    assert found["held"] is True
    assert found["by_rung"] == {"full": found["rankings"]}
    assert (found["rows"], found["slates"]) == (evaluated["rows"], evaluated["slates"])
    assert found["slates"] > 10
    assert found["max_score_difference"] < 1e-5
    for name, within in (("ndcg@10", 5e-4), ("auc", 1e-5), ("logloss", 1e-5)):
        assert found[name] == pytest.approx(evaluated["model"][name], abs=within)

    audited = command("audit", "--log", service.folder / "a", "--surface", "spaces", *model)
    assert audited["held"] is True
    assert audited["exposures"] == found["rankings"]
    assert audited["max"] <= 1e-6
    assert audited["model"]["rows"] == audited["rows"]
    assert audited["model"]["max_difference"] <= 1e-5


def test_of_several_outcomes_the_predictions_are_compared_and_the_primary_one_is_measured(home, tmp_path):
    write_model(home / "three", home / "a", surface=THREE)
    (tmp_path / "three.toml").write_text(THREE.text)
    model, history = ("--model", home / "three"), ("--history", home / "a")
    # The weights that an arm applies move its scores, and no prediction.
    arms = (Arm("model", "current", 1.0, weights={"stay": 0.5}),)
    config = {"surface": THREE, "model": "three", "experiment": Experiment("launch", "s", arms)}
    service = Service(home, tmp_path, **config)
    with service.listening() as url:
        found = command("replay", "--log", home / "b", "--url", url, *model, *history)
    assert found["held"] is True
    assert 0 < found["max_score_difference"] < 1e-5
    rows = build(Schema(THREE), read_log(home / "b", THREE), history=read_log(home / "a", THREE))
    assert found["rows"] == len(rows.of(0))
    surface = ("--surface", tmp_path / "three.toml")
    audited = command("audit", "--log", tmp_path / "a", *surface, *model)
    assert audited["held"] is True
    assert audited["model"]["rows"] == audited["rows"]
    assert audited["model"]["max_difference"] <= 1e-5


def test_a_service_of_the_wall_clock_is_refused(home, tmp_path):
    with Service(home, tmp_path, clock="wall").listening() as url:
        printed = command("replay", "--log", home / "b", "--url", url, code=2)
    assert "`clock: event`" in printed


def test_a_service_of_another_surface_or_model_is_refused(home, tmp_path, service):
    text = SURFACE.text.replace('within = "30m"', 'within = "20m"')
    assert text != SURFACE.text
    (tmp_path / "other.toml").write_text(text)
    write_model(tmp_path / "model", home / "a", version="20270102T030405Z-0a1b")
    log = ("--log", home / "b")
    with service.listening() as url:
        by_surface = command("replay", *log, "--url", url, "--surface", tmp_path / "other.toml", code=2)
        by_model = command("replay", *log, "--url", url, "--model", tmp_path / "model", code=2)
    assert "(by fingerprint)" in by_surface
    assert "20270102T030405Z-0a1b; publish this model" in by_model


def test_a_service_that_does_not_answer_is_reported(home):
    printed = command("replay", "--log", home / "b", "--url", "http://127.0.0.1:9", code=2)
    assert "http://127.0.0.1:9 does not answer" in printed
    for wrong in ("localhost", "http://127.0.0.1:http", "ftp://127.0.0.1"):
        printed = command("replay", "--log", home / "b", "--url", wrong, code=2)
        assert f"{wrong!r} is not an address" in printed


def test_a_log_that_begins_with_a_snapshot_is_refused_with_the_way_out(home, tmp_path, service):
    shutil.copytree(home / "b", tmp_path / "b")
    schema = Schema(SURFACE)
    store = open_store("lmdb:store", "spaces", schema.fingerprint, base=tmp_path, writable=False)
    write(tmp_path / "b", store, schema, lambda: 0, lambda: True)
    set_truncation_point(tmp_path / "b", store.seq())
    store.close()
    with service.listening() as url:
        printed = command("replay", "--log", tmp_path / "b", "--url", url, code=2)
    assert "begins with a snapshot" in printed
    assert "--history" in printed


def test_a_ranking_that_is_refused_is_named(home, tmp_path, service):
    shutil.copytree(home / "b", tmp_path / "b")
    table = pq.read_table(tmp_path / "b" / "exposures.parquet")
    many = pa.array([[f"s{i}" for i in range(1_001)], *table["candidates"].to_pylist()[1:]])
    table = table.set_column(table.column_names.index("candidates"), "candidates", many)
    pq.write_table(table, tmp_path / "b" / "exposures.parquet")
    with service.listening() as url:
        printed = command("replay", "--log", tmp_path / "b", "--url", url, code=2)
    assert printed.startswith(
        f"ranking {table['request_id'][0].as_py()!r}: the service answers 422: /candidates"
    )


def test_a_second_replay_is_refused(home, service):
    with service.listening() as url:
        command("replay", "--log", home / "b", "--url", url)
        assert "already has" in command("replay", "--log", home / "b", "--url", url, code=2)


def test_rankings_that_the_model_did_not_make_do_not_hold(home, tmp_path):
    # The second arm's model is of another surface.
    arms = (Arm("model", "current", 0.5), Arm("refused", MODEL, 0.5))
    service = Service(home, tmp_path, experiment=Experiment("launch", "s", arms))
    with service.listening() as url:
        found = command("replay", "--log", home / "b", "--url", url, code=1)
    assert found["by_rung"]["fallback"] > 0
    assert found["held"] is False
    assert 0 < found["unscored_rows"] < found["rows"]


@pytest.mark.parametrize("compared", [False, True])
def test_where_nothing_is_scored_there_is_nothing_to_measure(home, tmp_path, compared):
    with_model = ("--model", home / "model", "--history", home / "a") if compared else ()
    experiment = Experiment("launch", "s", (Arm("popular", "popular", 1.0),))
    with Service(home, tmp_path, experiment=experiment).listening() as url:
        assert "the service scored no candidate" in command(
            "replay", "--log", home / "b", "--url", url, *with_model, code=2
        )
