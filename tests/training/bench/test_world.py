"""Test the benchmark on the simulated world: the gap between popular and the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.log.reader import read_log
from serve.model.scorers import load_scorer
from training.bench.world import bench_world, table
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.data.split import split
from training.fit.fit import save
from training.fit.loop import FitConfig
from training.network.model import Model
from training.network.network import Network, NetworkConfig
from training.world.simulate import simulate


class Measured:
    """Split a world in two, and measure an untrained network in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        simulate(folder / "world", rows=8_000, days=0.3)
        split(folder / "world", 0.7, folder / "a", folder / "b")
        schema = Schema(load_surface("spaces"))
        past = read_log(folder / "a", schema.surface)
        train = build(schema, past)
        strings = category_strings(schema.surface, past)
        encoder = fit_encoder(schema.surface, train.columns, train.matrix, strings)
        config = FitConfig(NetworkConfig(width=2, n_steps=1))
        model = Model.of(encoder, config.network, Network(encoder, config.network).tabnet.state_dict())
        save(
            folder / "m",
            schema,
            model,
            config,
            train,
            "validation",
            seen=train.matrix,
            rivals={},
            about={},
            manifest={"rows": len(train)},
            begun=0,
        )
        self.data = build(schema, read_log(folder / "b", schema.surface), history=past)
        rows = pq.read_table(folder / "world/truth.parquet").to_pylist()
        truth = {row["request_id"]: row["p_join"] for row in rows}
        places = zip(self.data.slate, self.data.position, strict=True)
        self.chance = np.array([truth[self.data.request_ids[slate]][place] for slate, place in places])
        self.found = self.measure()

    def measure(self, world: str = "world") -> dict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.evaluation.rivals.TUNING_S", 0.0)
            return bench_world(self.folder / "m", self.folder / world, self.folder / "a", self.folder / "b")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Measured:
    return Measured(tmp_path_factory.mktemp("world"))


def test_the_oracle_scores_each_row_with_its_true_probability(measured):
    data, chance = measured.data, measured.chance
    hit, miss = chance[data.label > 0], chance[data.label == 0]
    won = (hit[:, None] > miss).mean() + (hit[:, None] == miss).mean() / 2
    assert measured.found["auc"]["log"]["oracle"] == pytest.approx(won)
    assert measured.found["rows"] == len(data)


def test_against_the_truth_each_row_is_both_labels_by_its_chance(measured):
    rng = np.random.default_rng(0)
    data, chance = measured.data, measured.chance
    score = load_scorer(measured.folder / "m", "onnx").score(data.matrix.numeric, data.matrix.category)
    drawn = []
    for _ in range(40):
        label = rng.random(len(chance)) < chance
        rank = np.argsort(np.argsort(score)) + 1
        num = label.sum()
        drawn.append((rank[label].sum() - num * (num + 1) / 2) / (num * (~label).sum()))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert measured.found["auc"]["truth"]["model"] == pytest.approx(np.mean(drawn), abs=5 * error)


def test_the_way_goes_from_popular_to_the_oracle(measured):
    for against in ("log", "truth"):
        closed = measured.found["closed"][against]
        assert (closed["popular"], closed["oracle"]) == (0.0, 1.0)
        assert closed["model"] < closed["lightgbm"]
        assert 0.0 < closed["baseline"] < 1.0
    assert measured.found["held"] is False
    assert "oracle" in table(measured.found)


def test_a_world_without_its_truth_is_refused_by_name(measured):
    with pytest.raises(
        TabrankError, match=r"a/truth\.parquet is missing; name a log that `training simulate` wrote"
    ):
        measured.measure("a")


def test_another_worlds_truth_is_refused(measured):
    simulate(measured.folder / "other", rows=2_000, days=0.1)
    with pytest.raises(TabrankError, match="must be a part of that world"):
        measured.measure("other")
