from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from training.fit.teaching import TEACHER_SHARE, mixed
from training.network.network import Inputs

ROWS = Inputs(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), torch.ones(2))


def test_networks_and_a_rival_share_the_taught_part_of_a_label_equally():
    # Two networks of a probability of one half together.
    logits = [np.array([2.0, 2.0], np.float32), np.array([-2.0, -2.0], np.float32)]
    label = mixed(ROWS, logits, np.array([0.1, 0.9])).label.numpy()
    taught = np.array([0.3, 0.7])
    assert np.allclose(label, TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * np.array([0.0, 1.0]))


def test_without_teachers_the_labels_stay():
    assert mixed(ROWS, [], None) is ROWS


def test_a_taught_label_is_as_shown_like_the_observed_one():
    rows = replace(ROWS, examination=torch.tensor([0.5, 0.25]))
    label = mixed(rows, [], np.array([0.8, 0.8])).label.numpy()
    assert np.allclose(
        label, TEACHER_SHARE * np.array([0.4, 0.2]) + (1 - TEACHER_SHARE) * np.array([0.0, 1.0])
    )
