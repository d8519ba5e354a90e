"""Test the reports of a trial."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve.model.encoder import Encoder, NumericColumn
from training.fit.loop import FitConfig, run
from training.network.network import Inputs, NetworkConfig, inputs
from training.search.trial import Referee

ENCODER = Encoder(numeric=(NumericColumn("a"), NumericColumn("b")), single=(), multi=())
NETWORK = NetworkConfig(width=8, n_steps=1, n_independent=1, n_shared=1, virtual_batch_size=64)
CONFIG = FitConfig(NETWORK, epochs=3, batch_size=128, patience=3)


def shown(num_rows: int, seed: int) -> Inputs:
    """Rows whose label depends on the position and on the first column."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(num_rows, 2)).astype(np.float32)
    position = rng.integers(0, 40, num_rows)
    chance = 1 / (1 + np.exp(-2 * numeric[:, 0])) / (1 + position / 5)
    label = (rng.random(num_rows) < chance).astype(np.float32)
    none = np.zeros((num_rows, 0))
    return inputs(ENCODER, (numeric, none.astype(np.float32), none.astype(np.int64)), label, position)


@pytest.mark.parametrize("position_bias", ["ignored", "examined"])
def test_stopped_and_finished_trials_have_one_measure_without_position(position_bias):
    config = replace(CONFIG, position_bias=position_bias)
    train, valid = shown(2_000, seed=1), shown(1_000, seed=2)
    moved = replace(valid, position=torch.zeros_like(valid.position))
    referee = Referee(ENCODER, config, len(train), valid)
    blind = Referee(ENCODER, config, len(train), moved)
    reported, knowing = [], []

    def after_epoch(state):
        reported.append(referee.report(state))
        knowing.append(state.history[-1]["valid_logloss"])
        assert blind.report(state) == reported[-1]

    state = run(train, valid, ENCODER, config, after_epoch=after_epoch)
    verdict = referee.verdict(state, np.arange(1_000) // 10)
    assert {key: verdict[key] for key in reported[-1]} == reported[-1]
    assert (verdict["percent"], verdict["share"], reported[0]["percent"]) == (100, 1.0, 33)
    losses = [line["valid_logloss"] for line in reported]
    if position_bias == "ignored":
        assert losses == knowing
    else:
        # The measure of the loop uses the positions.
        assert all(ours > theirs + 0.01 for ours, theirs in zip(losses[1:], knowing[1:], strict=True))


def test_the_work_of_a_trial_counts_epochs_and_part_of_the_validation():
    train, valid = shown(500, seed=1), shown(100, seed=2)
    referee, work = Referee(ENCODER, CONFIG, len(train), valid), []
    run(train, valid, ENCODER, CONFIG, after_epoch=lambda state: work.append(referee.report(state)["rows"]))
    assert work == [525, 1050, 1575]


def test_a_jobs_rows_are_mapped_as_they_were_saved(tmp_path):
    rows = shown(50, seed=3)
    rows.save(tmp_path / "trials", "train")
    mapped = Inputs.map(tmp_path / "trials", "train")
    for name in ("x", "label", "position"):
        assert torch.equal(getattr(mapped, name), getattr(rows, name))
