"""Teaching: labels for a network from the mean of other models (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from serve.contract.validation import spelled
from serve.model.encoder import Encoder
from training.data.dataset import Dataset
from training.evaluation.rivals import MOST_ROWS, NUM_SEEDS, SEED_ROWS, lightgbm, tuned
from training.examination.examination import Examination
from training.network.network import Inputs
from training.terminal import print_progress

# Share of the teachers' mean in a distilled label; the rest is the observed label.
TEACHER_SHARE = 0.7
# Longest training of LightGBM for a `fit`, forecast from the pace of its first try on this machine.
MOST_S = 120.0


def mixed(rows: Inputs, logits: Sequence[NDArray[np.float32]], rival: NDArray[np.float64] | None) -> Inputs:
    """Return `rows`, their labels mixed with the teachers': networks' logits, a rival's, [N].

    Teachers answer P(label | looked at). A label is as shown, so it is mixed with that times the
    examination of its position.
    """
    taught = [1.0 / (1.0 + np.exp(-np.mean(logits, axis=0)))] if logits else []
    taught += [rival] if rival is not None else []
    if not taught:
        return rows
    as_shown = rows.examination.numpy() * np.mean(taught, axis=0)
    label = TEACHER_SHARE * as_shown + (1.0 - TEACHER_SHARE) * rows.label.numpy()
    return replace(rows, label=torch.from_numpy(np.asarray(label, np.float32)))


def taught(rows: Inputs, data: Dataset, encoder: Encoder, examination: Examination) -> Inputs:
    """Return `rows`, those of `data`, taught by LightGBM; as they are if it took too long.

    LightGBM has the settings that suit small and noisy logs: to tune them is a search.
    """
    begun_s = time.monotonic()
    settings = tuned(encoder, data, examination, 0.0)
    row_s = (time.monotonic() - begun_s) / min(len(data), MOST_ROWS)
    if (forecast_s := row_s * max(len(data), min(NUM_SEEDS * len(data), SEED_ROWS))) > MOST_S:
        print_progress(
            f"LightGBM does not teach: it would take {spelled(forecast_s)}; `training search` has the time"
        )
        return rows
    return mixed(rows, [], lightgbm(encoder, data, examination, **settings)(data.matrix))
