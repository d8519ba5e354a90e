from __future__ import annotations

import numpy as np
import torch

from training.network.network import Inputs
from training.search.distil import TEACHER_SHARE, mixed

ROWS = Inputs(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64))


def test_networks_and_a_rival_share_the_taught_part_of_a_label_equally():
    # Two networks of a probability of one half together.
    logits = [np.array([2.0, 2.0], np.float32), np.array([-2.0, -2.0], np.float32)]
    label = mixed(ROWS, logits, np.array([0.1, 0.9])).label.numpy()
    taught = np.array([0.3, 0.7])
    assert np.allclose(label, TEACHER_SHARE * taught + (1 - TEACHER_SHARE) * np.array([0.0, 1.0]))


def test_without_teachers_the_labels_stay():
    assert mixed(ROWS, [], None) is ROWS
