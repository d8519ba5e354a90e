from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest

from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.model.artifact import load
from tests.support.shop_log import write_shop
from training.data.dataset import build
from training.drafting.draft import draft
from training.evaluation.drift import CHANGED, STATISTICS, drift
from training.evaluation.evaluate import evaluate, score
from training.evaluation.verdict import order
from training.fit.fit import fit
from training.fit.loop import FitConfig
from training.network.network import Network, NetworkConfig

CONFIG = FitConfig(NetworkConfig(width=8, n_steps=1), epochs=1, num_workers=0)


def configured(num_rows: int) -> FitConfig:
    """Return settings that depend on the number of rows."""
    return replace(CONFIG, batch_size=num_rows // 4)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit a model of a log in this process; return both."""
    folder = tmp_path_factory.mktemp("fit")
    write_shop(folder / "log", slates=600)
    surface = read_surface(draft(folder / "log").text)
    fit(surface, folder / "log", folder / "model", configured)
    return folder / "log", folder / "model", surface


def test_the_manifest_records_the_settings_for_its_rows_and_what_a_search_would_gain(fitted):
    _, model, _ = fitted
    manifest = load(model).manifest
    assert manifest["fit"]["batch_size"] == manifest["rows"] // 4
    network = Network(load(model).encoder, CONFIG.network)
    assert manifest["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    # LightGBM.
    assert manifest["teachers"] == 1
    (reason,) = manifest["advice"]
    assert f"{manifest['rows']:,} training rows" in reason
    assert reason in load(model).read("MODEL_CARD.md").decode()


def test_rows_that_chose_the_epoch_and_the_calibration_count_as_seen(fitted):
    log, model, surface = fitted
    found = evaluate(model, None, log, lambda share: None, baselines=False, by=None)
    assert found["rows_seen_in_training"] == found["rows"]
    manifest = load(model).manifest
    last_ms = read_log(log, surface).exposures["ts_ms"].to_numpy().max()
    assert manifest["span_ms"][1] < manifest["seen_until_ms"] <= last_ms
    assert manifest["log"] == str(log)


def test_more_rows_than_are_measured_are_a_sample_that_is_said(fitted, monkeypatch, capsys):
    log, model, surface = fitted
    whole = evaluate(model, None, log, lambda share: None, baselines=False, by=None)
    num_shown = len(pc.list_flatten(read_log(log, surface).exposures["candidates"]))
    most = num_shown // 4
    monkeypatch.setattr("training.evaluation.evaluate.MOST_ROWS", most)
    monkeypatch.setattr("training.evaluation.rivals.MAX_TRIES", 1)
    found = evaluate(model, log, log, lambda share: None, baselines=True, by=None)
    assert 0.9 * most < found["rows"] <= most
    assert found["sampled_from"] == found["lightgbm_sampled_from"] == num_shown
    assert f"using about {most:,} of {num_shown:,} shown candidates" in capsys.readouterr().err
    assert f"the rows are a sample, evenly over time, of {num_shown:,}" in order(found)
    assert f"LightGBM learned from a sample, evenly over time, of {num_shown:,}" in order(found)
    # They have the labels and the scores of the whole log, and its features.
    assert found["model"]["auc"] == pytest.approx(whole["model"]["auc"], abs=0.1)
    assert found["span_ms"][0] < whole["span_ms"][0] + 86_400_000
    assert "sampled_from" not in whole
    assert "sample" not in order(whole)


def test_validation_rows_that_are_a_sample_are_said_in_the_report(fitted, monkeypatch, tmp_path):
    log, model, surface = fitted
    num_rows = load(model).manifest["validation_rows"]
    monkeypatch.setattr("training.fit.prepare.MAX_VALIDATION", num_rows // 2)
    fit(surface, log, tmp_path / "model", configured)
    card = load(tmp_path / "model").read("MODEL_CARD.md").decode()
    assert f"the rows are a sample, evenly over time, of {num_rows:,}" in card
    assert "sample" not in load(model).read("MODEL_CARD.md").decode()


def test_an_artifact_keeps_the_distributions_of_rows_and_scores(fitted):
    log, model, surface = fitted
    artifact = load(model)
    kept = json.loads(artifact.read("evaluation.json"))[STATISTICS]
    assert kept["rows"] == artifact.manifest["rows"]
    data = build(Schema(surface), read_log(log, surface))
    # Validation rows come last.
    early = data.matrix.rows(slice(0, kept["rows"]))
    found = drift(kept, data.columns, early, score(model, early)[:, 0], np.arange(len(early.numeric)))
    assert max(found["features"].values()) < 1e-9
    # Another implementation computes these scores, so some fall into a neighbouring cell.
    assert found["score"] < 0.001
    late = data.matrix.rows(slice(kept["rows"], None))
    moved = drift(kept, data.columns, late, score(model, late)[:, 0], np.arange(len(late.numeric)))
    assert max(index for index in moved["features"].values() if index is not None) > CHANGED
