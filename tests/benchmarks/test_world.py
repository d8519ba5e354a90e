"""Test the benchmark on the simulated world: the gap between popular and the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.world import bench_world, table
from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import load_surface
from serve.log.reader import read_log
from training.data.dataset import build
from training.data.encoding import category_strings, fit_encoder
from training.data.split import split
from training.examination.examination import Examination
from training.fit.fit import Fitted, save
from training.fit.loop import FitConfig
from training.network.model import Model
from training.network.network import Network, NetworkConfig
from training.world.simulate import simulate

EXAMINATION = Examination("learned", tuple(1 / (1 + np.arange(55) / 12)), (0.0,) * 55, 500)


class Measured:
    """Split a world in two, and measure an untrained network in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        simulate(folder / "world", rows=8_000, days=0.3)
        split(folder / "world", 0.5, folder / "a", folder / "b")
        schema = Schema(load_surface("spaces"))
        past = read_log(folder / "a", schema.surface)
        train = build(schema, past)
        strings = category_strings(schema.surface, past)
        encoder = fit_encoder(schema.surface, train.columns, train.matrix, strings)
        config = FitConfig(NetworkConfig(width=2, n_steps=1))
        torch.manual_seed(0)
        model = Model.of(encoder, config.network, Network(encoder, config.network).tabnet.state_dict())
        fitted = Fitted(
            schema,
            model,
            config,
            train,
            "validation",
            seen=train.matrix,
            log=folder / "a",
            rows=len(train),
            span_ms=(0, 0),
            seen_until_ms=0,
            counts={},
            begun=0,
            manifest={"examination": EXAMINATION.to_json()},
        )
        save(fitted, folder / "m")
        self.data = build(schema, read_log(folder / "b", schema.surface), history=past)
        rows = pq.read_table(folder / "world/truth.parquet").to_pylist()
        truth = {row["request_id"]: row["p_join"] for row in rows}
        self.theta = np.array(rows[0]["examination"])
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


def test_the_oracle_earns_the_most_that_any_order_can(measured):
    data, chance = measured.data, measured.chance
    best = 0.0
    for slate in np.unique(data.slate):
        rows = np.flatnonzero(data.slate == slate)
        best += np.sort(chance[rows])[::-1] @ np.sort(measured.theta[data.position[rows]])[::-1]
    found = measured.found["contenders"]
    assert found["oracle"]["label_events"] == pytest.approx(best / len(np.unique(data.slate)))
    assert found["random"]["label_events"] < found["oracle"]["label_events"]
    assert measured.found["rows"] == len(data)


def test_the_shown_order_earns_what_the_world_gave_it(measured):
    data, popular = measured.data, measured.found["contenders"]["popular"]
    shown = measured.theta[data.position] @ measured.chance / len(np.unique(data.slate))
    # Equal audiences are in another order.
    assert popular["label_events"] == pytest.approx(shown, rel=0.05)
    low, high = popular["interval"]
    assert low < shown < high


def test_the_gap_is_in_true_events_and_the_yardstick_is_compared_with_them(measured):
    found = measured.found["contenders"]
    assert (found["popular"]["closed"], found["oracle"]["closed"]) == (0.0, 1.0)
    assert found["model"]["closed"] < found["lightgbm"]["closed"] < 1.0
    assert 0.0 < found["baseline"]["closed"] < 1.0
    assert measured.found["held"] is False
    rank = measured.found["rank_correlation"]
    assert rank["expected_labels"] >= 0.8
    assert 0 < rank["ndcg@10"] <= 1
    text = table(measured.found)
    assert "oracle" in text
    assert "rank correlation with true label events: expected_labels " in text


def test_in_a_world_that_looks_at_all_positions_no_order_is_better(measured):
    folder = measured.folder / "flat"
    simulate(folder / "world", rows=2_500, days=0.1, examination="none")
    split(folder / "world", 0.7, folder / "a", folder / "b")
    found = bench_world(measured.folder / "m", folder / "world", folder / "a", folder / "b")
    assert {one["closed"] for one in found["contenders"].values()} == {None}
    assert found["rank_correlation"] == {"expected_labels": None, "ndcg@10": None}
    assert found["held"] is False
    assert "every order earns the same in this world" in table(found)


def test_a_world_without_its_truth_is_refused_by_name(measured):
    with pytest.raises(
        TabrankError, match=r"a/truth\.parquet is missing; name a log that `training simulate` wrote"
    ):
        measured.measure("a")


def test_another_worlds_truth_is_refused(measured):
    simulate(measured.folder / "other", rows=2_000, days=0.1)
    with pytest.raises(TabrankError, match="must be part of that world"):
        measured.measure("other")
