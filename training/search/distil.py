"""Distillation: labels for one network from the mean of several (Hinton, Vinyals and Dean 2015).

Networks that differ only in their seed make different errors. The mean of a few is better than
each of them. One network trained on that mean keeps most of the gain at the cost of one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from serve.model.encoder import Encoder
from serve.storage.atomic_files import file_draft_of
from training.fit.loop import Diverged, FitConfig, run
from training.fit.teaching import mixed
from training.network.model import Model
from training.network.network import Inputs
from training.search.trial import device, needs
from training.terminal import print_progress


def distilled(
    rows: Inputs,
    folder: Path,
    encoder: Encoder,
    config: FitConfig,
    num_teachers: int,
    rival: NDArray[np.float64] | None,
) -> Inputs:
    """Return `rows`, their labels mixed with the mean of `num_teachers` networks trained on them.

    The mean counts half if there is a `rival`, P(label | looked at) `[N]` of another model.
    `folder` holds the rows as `train`, and `valid`, both of `Inputs.save`. The predictions of each
    teacher are stored beside them, so that a killed search can resume. Ray must be running.
    """
    resources = needs()
    teach = ray.remote(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0))(_teach)
    numbers = range(1, num_teachers + 1)
    seeded = [replace(config, seed=config.seed + number) for number in numbers]
    taught = [teach.remote(folder, encoder.to_json(), one) for one in seeded]
    logits = []
    for number, answer in zip(numbers, taught, strict=True):
        logit = ray.get(answer)
        if logit is None:
            print_progress(f"teacher {number} diverged and is left out")
        else:
            logits.append(logit)
            print_progress(f"teacher {number}/{num_teachers} is trained")
    return mixed(rows, logits, rival)


def _teach(folder: Path, as_json: str, config: FitConfig) -> NDArray[np.float32] | None:
    """Train a network, unless that is done; return its logits [N] on the training rows.

    Returns None if the training diverges.
    """
    path = folder / f"teacher-{config.seed}.npy"
    if path.exists():
        return np.asarray(np.load(path), np.float32)
    torch.set_num_threads(1)
    encoder = Encoder.from_json(as_json)
    rows, valid = (Inputs.map(folder, name) for name in ("train", "valid"))
    try:
        state = run(rows, valid, encoder, config, device=device())
    except Diverged:
        return None
    network = Model.of(encoder, config.network, state.last).network
    logit = network.logit(rows.x).numpy()
    with file_draft_of(path) as draft, draft.open("wb") as file:
        np.save(file, logit)
    return np.asarray(logit, np.float32)
