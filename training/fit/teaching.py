"""Mix a network's labels with predictions of other models (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from serve.contract.validation import spelled
from serve.model.encoder import Encoder
from training.data.dataset import Dataset
from training.evaluation.rivals import NUM_SEEDS, SEED_ROWS, trees, tuned
from training.examination.examination import Examination
from training.network.network import Inputs
from training.terminal import print_progress

# A mixed label has this share of the teachers' mean. The rest is the observed label.
TEACHER_SHARE = 0.7
# The longest training of LightGBM for a `fit`, and the time that a tree takes per cell that it
# reads. Durations are computed from the latter and not measured, so that equal seeds give equal
# models, and a killed fit resumes with the same labels.
MOST_S, CELL_S = 120.0, 1e-8


def mixed(rows: Inputs, logits: Sequence[NDArray[np.float32]], rival: NDArray[np.float64] | None) -> Inputs:
    """Return `rows` with labels that are mixed with what teachers predict.

    The teachers are networks, given by their `logits` `[N, O]`, and a `rival`, given by its
    probabilities `[N, O]`. They predict P(label | looked at). A label is as shown, so it is mixed
    with their prediction times the examination of its position. An unknown label stays unknown.
    """
    taught = [expit(np.mean(logits, axis=0))] if logits else []
    taught += [rival] if rival is not None else []
    if not taught:
        return rows
    as_shown = rows.examination.numpy() * np.mean(taught, axis=0)
    label = TEACHER_SHARE * as_shown + (1.0 - TEACHER_SHARE) * rows.label.numpy()
    return replace(rows, label=torch.from_numpy(np.asarray(label, np.float32)))


def taught(rows: Inputs, data: Dataset, encoder: Encoder, examinations: Sequence[Examination]) -> Inputs:
    """Return the rows of `data` with labels taught by LightGBM, unless that would take too long.

    LightGBM has settings that suit small and noisy logs. Only a search tunes them.
    """
    settings = tuned(encoder, data.of(0), examinations[0], 0.0)
    num_rows = max(len(data), min(NUM_SEEDS * len(data), SEED_ROWS))
    num_trees = settings["num_iterations"] * len(examinations)
    lasts_s = num_trees * num_rows * len(encoder.input_names) * CELL_S
    if lasts_s > MOST_S:
        print_progress(f"LightGBM does not teach, as it would take {spelled(lasts_s)}: `search` has the time")
        return rows
    print_progress(f"trees: {num_trees}; they take about {spelled(max(1, round(lasts_s)))}")
    return mixed(rows, [], trees(encoder, data, examinations, settings)(data.matrix))
