"""Test the reports of a trial."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve.model.encoder import Encoder, NumericColumn
from training.fit.loop import FitConfig, run
from training.network.network import Inputs, NetworkConfig, inputs
from training.search.leaderboard import Judged
from training.search.trial import report, verdict

ENCODER = Encoder(numeric=(NumericColumn("a"), NumericColumn("b")), single=(), multi=())
NETWORK = NetworkConfig(width=8, n_steps=1, n_independent=1, n_shared=1, virtual_batch_size=64)
CONFIG = FitConfig(NETWORK, epochs=3, batch_size=128)


def shown(num_rows: int, seed: int) -> Inputs:
    """Rows whose label depends on the position and on the first column."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(num_rows, 2)).astype(np.float32)
    position = rng.integers(0, 40, num_rows)
    chance = 1 / (1 + np.exp(-2 * numeric[:, 0])) / (1 + position / 5)
    label = (rng.random(num_rows) < chance).astype(np.float32)
    none = np.zeros((num_rows, 0))
    encoded = numeric, none.astype(np.float32), none.astype(np.int64)
    return inputs(ENCODER, encoded, label[:, None], 1 / (1 + position[:, None] / 5))


def test_stopped_and_finished_trials_have_one_measure_with_the_examination_of_positions():
    train, valid = shown(2_000, seed=1), shown(1_000, seed=2)
    reported = []

    def after_epoch(state) -> None:
        reported.append(report(state, CONFIG, train, valid))

    state = run(train, valid, ENCODER, CONFIG, after_epoch=after_epoch)
    assert report(state, CONFIG, train, valid) == reported[-1]
    assert [line["percent"] for line in reported] == [33, 66, 100]
    slate = np.arange(1_000) // 10
    judged = Judged(valid.label.numpy(), slate, slate, np.ones(1))
    found = verdict(state, ENCODER, CONFIG, valid, judged)
    assert sum(found["losses"]) == pytest.approx(reported[-1]["valid_logloss"], abs=1e-6)
    assert 0.5 < found["valid_ndcg"] < 1
    assert len(found["history"]) == 3


def test_the_work_of_a_trial_counts_epochs_and_part_of_the_validation():
    train, valid = shown(500, seed=1), shown(100, seed=2)
    work = []

    def after_epoch(state) -> None:
        work.append(report(state, CONFIG, train, valid)["rows"])

    run(train, valid, ENCODER, CONFIG, after_epoch=after_epoch)
    assert work == [525, 1050, 1575]


def test_a_jobs_rows_are_mapped_as_they_were_saved(tmp_path):
    rows = shown(50, seed=3)
    rows.save(tmp_path / "trials", "train")
    mapped = Inputs.map(tmp_path / "trials", "train")
    for name in ("x", "label", "examination"):
        assert torch.equal(getattr(mapped, name), getattr(rows, name))
