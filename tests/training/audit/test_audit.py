"""Test the audit command on a served log: unchanged, altered, and not comparable."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.config.settings import Arm, Experiment
from serve.config.slate import Boost, Rule, Spread, Wanted
from serve.contract.hashing import hash64
from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import load_surface, read_surface
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from serve.model.artifact import load, save
from tests.support.logging_service import Logging, busy_hour
from tests.support.networks import (
    VERSION,
    artifact_files,
    random_config,
    random_encoder,
    random_network,
    write_artifact,
)
from tests.support.small_surface import TOML, tables
from training.__main__ import app
from training.audit.audit import difference
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.evaluation.drift import STATISTICS, statistics
from training.evaluation.evaluate import score
from training.network.network import NetworkConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with the log of a served hour in which some rankings were test traffic."""
    home = tmp_path_factory.mktemp("audit")
    write_log(home / "log", tables())
    Logging(home, home / "log").run(busy_hour)
    return home


@pytest.fixture
def log(home, tmp_path):
    """Return a copy of that log, to be altered."""
    shutil.copytree(home / "log", tmp_path / "log")
    return tmp_path / "log"


@pytest.fixture(scope="module")
def model(home):
    """Return an artifact of the small surface with the distributions of the log's rows."""
    return write_model(home / "model", home / "log")


def write_model(folder, log_folder, *, num_outcomes=1):
    surface = read_surface(TOML)
    log = read_log(log_folder, surface)
    data = build(Schema(surface), log)
    rng = np.random.default_rng(0)
    encoder = fit_encoder(surface, data.columns, data.matrix, category_strings(surface, log))
    network = random_network(rng, encoder, NetworkConfig(width=4, n_steps=1), num_outcomes)
    files, manifest = artifact_files(network, rng)
    save(folder.parent / f"{folder.name}-draft", files | {"surface.toml": TOML.encode()}, manifest)
    scores = score(folder.parent / f"{folder.name}-draft", data.matrix)[:, 0]
    # As of a longer log, of candidates of one age: one feature can be judged.
    many = Matrix.stacked([data.matrix] * 20)
    many.numeric[:, data.columns.numeric.index("age_s")] = 1.0
    kept = {STATISTICS: statistics(data.columns, many, np.tile(scores, 20))}
    files |= {"surface.toml": TOML.encode(), "evaluation.json": json.dumps(kept).encode()}
    save(folder, files, manifest)
    return folder


def audit(home, log, *more, code=0):
    arguments = ["audit", "--surface", str(home / "tiny.toml"), "--log", str(log), "--json", *more]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return json.loads(done.stdout) if code < 2 else done.stderr.splitlines()[-1]


def altered(log, request_id, column, alter):
    """Alter a value of one exposure in the segments."""
    for path in (log / "exposures").glob("*.parquet"):
        table = pq.read_table(path)
        values = table[column].to_pylist()
        names = table["request_id"].to_pylist()
        if request_id in names:
            place = names.index(request_id)
            values[place] = alter(values[place])
            at = table.column_names.index(column)
            pq.write_table(
                table.set_column(at, column, pa.array(values, table.schema.field(column).type)), path
            )


def test_what_was_served_is_what_the_log_gives(home, log):
    found = audit(home, log)
    assert found["held"] is True
    assert (found["exposures"], found["test_exposures"]) == (60, 6)
    assert found["rows"] == sum(
        len(shown) for shown in pq.read_table(log / "exposures")["candidates"].to_pylist()
    )
    columns = Features(Schema(read_surface(TOML))).columns
    assert list(found["features"]) == [*columns.numeric, *columns.single, "tags"]
    assert found["max"] == max(found["features"].values()) <= 1e-6


def test_the_log_of_a_baseline_arm_holds_its_features_and_shows_the_order_of_the_rule(tmp_path):
    write_log(tmp_path / "log", tables())
    service = Logging(tmp_path, tmp_path / "log")
    rule = '[baseline]\nsort = ["same_language", "price", "audience"]\n'
    (tmp_path / "tiny.toml").write_text(f"{TOML}\n{rule}")
    arms = (Arm("rule", "baseline", 1.0),)
    service.config = dataclasses.replace(service.config, experiment=Experiment("e", "s", arms))
    service.run(busy_hour)
    found = audit(tmp_path, tmp_path / "log")
    assert (found["held"], found["exposures"]) == (True, 60)
    surface = load_surface(str(tmp_path / "tiny.toml"))
    data = build(Schema(surface), read_log(tmp_path / "log", surface))
    # A candidate that has ended comes last.
    data = data.take(np.flatnonzero(data.shown != data.candidate_ids.index("c")))
    served = data.slate >= data.request_ids.index("r0x")
    same = np.diff(data.slate) == 0
    falls = np.diff(data.rules["baseline"])[same & served[1:]]
    assert (falls <= 0).all()
    assert (falls < 0).sum() > 30


def test_the_log_of_an_arm_with_rules_and_pins_holds_its_features_in_the_order_shown(tmp_path):
    write_log(tmp_path / "log", tables())
    service = Logging(tmp_path, tmp_path / "log")
    rules = Rule(boost=Boost({"seen": Wanted(low=1)}, 0.3)), Rule(spread=Spread("candidate.host", 1, 2))
    arms = (dataclasses.replace(service.config.experiment.arms[0], slate=rules),)
    service.config = dataclasses.replace(service.config, experiment=Experiment("e", "s", arms))

    async def pinning(service):
        for i in range(20):
            shown = np.roll(["a", "b", "c", "d"], i).tolist()
            pins = {shown[-1]: 1 + i % 3} if i % 2 else {}
            await service.rank("ann", shown, 50_000 + 1_000 * i, pins=pins, request_id=f"r{i}x")

    service.run(pinning)
    found = audit(tmp_path, tmp_path / "log")
    assert (found["held"], found["exposures"], found["rows"]) == (True, 20, 80)
    log = read_log(tmp_path / "log", read_surface(TOML))
    pinned = [places for places in log.exposures["pinned"].to_pylist() if places]
    assert sorted(pinned) == [[0]] * 3 + [[1]] * 4 + [[2]] * 3
    # The log that filled the store has no pins, nor the last outcomes a closed window.
    data = build(Schema(read_surface(TOML)), log)
    assert 0 < data.pinned.sum() < 10


def test_a_feature_that_differs_is_named_with_its_ranking(home, log):
    columns = Features(Schema(read_surface(TOML))).columns
    at = columns.numeric.index("seen")

    def more(values):
        values[at] = values[at] + 0.5 * max(1.0, values[at])
        return values

    altered(log, "r30x", "numeric", more)
    found = audit(home, log, code=1)
    assert found["held"] is False
    assert found["max"] == found["features"]["seen"] == pytest.approx(0.5)
    first = pq.read_table(log / "exposures").filter(pa.compute.field("request_id") == "r30x")["candidates"][0]
    assert found["worst"] == {"feature": "seen", "request_id": "r30x", "candidate": first[0].as_py()}
    assert max(most for name, most in found["features"].items() if name != "seen") <= 1e-6


def test_a_missing_value_or_another_category_is_infinitely_far(home, log):
    altered(log, "r7x", "category", lambda values: [hash64("another"), *values[1:]])
    found = audit(home, log, code=1)
    assert found["max"] is found["features"]["viewer_language"] is None
    assert found["worst"]["feature"] == "viewer_language"
    far = difference(np.array([np.nan, 1.0, np.nan, 2.1]), np.array([np.nan, np.nan, 1.0, 2.0]))
    assert far.tolist() == [0.0, np.inf, np.inf, pytest.approx(0.05)]


def test_a_log_that_lacks_events_does_not_give_what_was_served(home, log):
    path = sorted((log / "events").glob("*.parquet"))[0]
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.compute.field("kind") != "join"), path)
    assert audit(home, log, code=1)["worst"] is not None


def test_a_ranking_is_compared_with_the_state_that_it_saw(home, log):
    altered(log, "r30x", "seen_seq", lambda seq: seq - 40)
    assert audit(home, log, code=1)["worst"]["request_id"] == "r30x"


def test_a_log_without_features_is_refused_with_the_remedy(home, tmp_path):
    write_log(tmp_path / "plain", tables())
    assert "set log_features" in audit(home, tmp_path / "plain", code=2)


def test_features_of_another_surface_are_refused(home, log):
    altered(log, "r7x", "numeric", lambda values: values[1:])
    printed = audit(home, log, code=2)
    assert "'r7x'" in printed
    assert "has features of another surface; name that one" in printed


def test_rankings_of_another_surface_are_counted_and_not_compared(home, log):
    altered(log, "r7x", "numeric", lambda values: values[1:])
    altered(log, "r7x", "surface", lambda name: "0123456789ab")
    found = audit(home, log)
    assert (found["held"], found["exposures"], found["other_surface"]) == (True, 59, 1)
    (home / "other.toml").write_text(TOML.replace('half_life = "10s"', 'half_life = "20s"'))
    arguments = ["audit", "--surface", str(home / "other.toml"), "--log", str(log)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "served with other surfaces than this one" in done.stderr


def test_people_get_a_table_with_the_worst_feature_first(home, log):
    altered(log, "r7x", "category", lambda values: [hash64("another"), *values[1:]])
    arguments = ["audit", "--surface", str(home / "tiny.toml"), "--log", str(log)]
    lines = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert lines[2].split() == ["viewer_language", "inf"]
    assert lines[-1].startswith("NOT held")


def scored_by(log, model, weights=(1.0,)):
    """Write utilities and predictions of the model into the log."""
    scales = load(model).outcomes
    applied = dict(zip(scales, weights, strict=True))
    for path in (log / "exposures").glob("*.parquet"):
        table = pq.read_table(path)
        rows, scores, predicted = [len(shown) for shown in table["candidates"].to_pylist()], [], []
        for i, num_rows in enumerate(rows):
            numeric = np.array(table["numeric"][i].as_py(), np.float32).reshape(num_rows, -1)
            category = np.array(table["category"][i].as_py(), np.uint64).reshape(num_rows, -1)
            amounts = score(model, Matrix(numeric, category)) * np.float32(list(scales.values()))
            scores.append(amounts @ np.float32(weights))
            predicted.append(amounts.ravel() if len(weights) > 1 else None)
        for name, values in (
            ("scores", pa.array(scores, pa.list_(pa.float32()))),
            ("model", pa.array([VERSION] * len(rows), pa.string())),
            ("predictions", pa.array(predicted, pa.list_(pa.float32()))),
            ("weights", pa.array([json.dumps(applied)] * len(rows), pa.string())),
        ):
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, values)
        pq.write_table(table, path)


def test_scores_are_compared_where_the_model_gave_them(home, log, model):
    found = audit(home, log, "--model", model)
    assert found["model"] == {"version": VERSION, "rows": 0, "max_difference": None}
    scored_by(log, model)
    found = audit(home, log, "--model", model)
    assert found["model"]["rows"] == found["rows"]
    assert found["model"]["max_difference"] <= 1e-6
    altered(log, "r7x", "scores", lambda scores: [scores[0] + 0.01, *scores[1:]])
    found = audit(home, log, "--model", model, code=1)
    # Only the scores differ.
    assert found["max"] <= 1e-6
    assert found["model"]["max_difference"] == pytest.approx(0.01, abs=1e-4)


def test_of_one_outcome_the_score_by_its_weight_is_compared(home, log, model):
    scored_by(log, model, weights=(2.5,))
    found = audit(home, log, "--model", model)
    assert found["model"]["rows"] == found["rows"]
    assert found["model"]["max_difference"] <= 1e-6


def test_of_several_outcomes_the_predictions_are_compared_whatever_the_weights_were(home, log, tmp_path):
    model = write_model(tmp_path / "model", home / "log", num_outcomes=3)
    scored_by(log, model, weights=(1.0, 0.08, -7.0))
    found = audit(home, log, "--model", model)
    assert found["model"]["rows"] == found["rows"]
    assert found["model"]["max_difference"] <= 1e-6
    altered(log, "r7x", "scores", lambda scores: [scores[0] + 1.0, *scores[1:]])
    assert audit(home, log, "--model", model)["held"]
    # Of the second candidate, the minutes.
    altered(log, "r7x", "predictions", lambda amounts: [*amounts[:4], amounts[4] + 0.6, *amounts[5:]])
    found = audit(home, log, "--model", model, code=1)
    assert found["model"]["max_difference"] == pytest.approx(0.01, abs=1e-4)


def test_drift_is_reported_for_live_rankings_and_fails_nothing(home, log, model):
    found = audit(home, log, "--model", model)["drift"]
    whole = read_log(log, read_surface(TOML))
    replay = Replay(Schema(read_surface(TOML)), whole)
    # No score is given to unknown candidates, and no model was trained on such rows.
    has_features = [name.endswith("x") for name in whole.exposures["request_id"].to_pylist()]
    unknown = replay.unknown()[np.repeat(has_features, np.diff(replay.first))]
    assert 0 < unknown.sum() < found["rows"] == (~unknown).sum()
    assert set(found["features"]) == set(audit(home, log)["features"])
    judged = {name for name, index in found["features"].items() if index is not None}
    assert (judged, found["judged"]) == ({"age_s"}, 1)
    assert judged | set(found["not_judged"]) >= set(found["features"])


def test_few_rows_leave_the_drift_unjudged_with_what_is_needed(home, log, model):
    """Only three rankings have logged features."""
    for path in (log / "exposures").glob("*.parquet"):
        table = pq.read_table(path)
        keep = [name in ("r3x", "r5x", "r7x") for name in table["request_id"].to_pylist()]
        for name in ("numeric", "category"):
            values = [
                value if kept else None for value, kept in zip(table[name].to_pylist(), keep, strict=True)
            ]
            column = pa.array(values, table.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)
    arguments = ["audit", "--surface", str(home / "tiny.toml"), "--log", str(log), "--model", str(model)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.stderr
    *lines, why, _, held = done.stdout.splitlines()
    assert held == "held: the served features equal those of the log"
    language = next(line for line in lines if line.startswith("viewer_language "))
    assert re.search(r"  –  not judged: [23] of \d+ rows$", language)
    assert not any("has changed" in line or "has moved" in line for line in lines)
    assert "are not judged" in why


def test_the_scores_of_a_model_of_other_columns_are_not_asked(home, log, tmp_path):
    rng = np.random.default_rng(0)
    encoder = random_encoder(rng, 2, 1, 0)
    other = write_artifact(
        tmp_path / "other", random_network(rng, encoder, random_config(rng, "entmax")), rng
    )
    assert "fit a model for this surface" in audit(home, log, "--model", other, code=2)
