from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from serve.model.encoder import Encoder, NumericColumn
from tests.support.inline_ray import InlineRay
from training.fit.loop import FitConfig
from training.fit.teaching import TEACHER_SHARE, mixed
from training.network.network import Inputs, NetworkConfig
from training.search.distil import distilled

ROWS = Inputs(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))


def test_networks_and_a_rival_share_the_taught_part_of_a_label_equally():
    # Two networks of a probability of one half together.
    logits = [np.full((2, 1), 2.0, np.float32), np.full((2, 1), -2.0, np.float32)]
    label = mixed(ROWS, logits, np.array([[0.1], [0.9]])).label.numpy()
    taught = np.array([[0.3], [0.7]])
    assert np.allclose(label, TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * np.array([[0.0], [1.0]]))


def test_without_teachers_the_labels_stay():
    assert mixed(ROWS, [], None) is ROWS


def test_a_taught_label_is_as_shown_like_the_observed_one():
    rows = replace(ROWS, examination=torch.tensor([[0.5], [0.25]]))
    label = mixed(rows, [], np.full((2, 1), 0.8)).label.numpy()
    assert np.allclose(
        label, TEACHER_SHARE * np.array([[0.4], [0.2]]) + (1 - TEACHER_SHARE) * np.array([[0.0], [1.0]])
    )


def test_a_label_that_is_not_known_is_not_taught():
    unknown = torch.tensor([[0.0, torch.nan], [1.0, 1.0]])
    label = mixed(replace(ROWS, label=unknown, examination=torch.ones(2, 2)), [], np.full((2, 2), 0.8)).label
    assert label.isnan().tolist() == [[False, True], [False, False]]


def test_a_killed_search_keeps_what_its_teachers_said(tmp_path, monkeypatch):
    monkeypatch.setattr("training.search.distil.ray", InlineRay)
    monkeypatch.setattr("training.search.distil.needs", lambda: {"cpu": 1.0})
    encoder = Encoder(numeric=(NumericColumn("a"), NumericColumn("b")), single=(), multi=())
    config = FitConfig(NetworkConfig(width=4, n_steps=1, virtual_batch_size=64), epochs=1, batch_size=64)
    chance = torch.Generator().manual_seed(0)
    for name, size in (("train", 200), ("valid", 50)):
        x = torch.randn(size, 2, generator=chance)
        Inputs(x, (x > 0).float(), torch.ones(size, 2)).save(tmp_path, name)
    rows = Inputs.map(tmp_path, "train")
    taught, num_taught = distilled(rows, tmp_path, encoder, config, 2, None)
    assert num_taught == 2
    assert not torch.equal(taught.label, rows.label)
    monkeypatch.setattr("training.search.distil.run", lambda *given, **named: pytest.fail("trained again"))
    again, num_kept = distilled(rows, tmp_path, encoder, config, 2, None)
    assert torch.equal(again.label, taught.label)
    assert num_kept == 2
