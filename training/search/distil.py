"""Distillation: train one network on the mean of several (Hinton, Vinyals and Dean 2015).

Networks that differ only in their seeds make different errors, so the mean of a few is better than
each of them. One network that is trained on that mean keeps most of the gain, at the serving cost
of one.
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
) -> tuple[Inputs, int]:
    """Return `rows` with labels mixed with the mean of `num_teachers` networks trained on them.

    If there is a `rival`, which is P(label | looked at) `[N]` by another model, it counts as much
    as all networks together. `folder` holds the teachers' rows as `train`, and the newest of these
    as `valid`, written by `Inputs.save`. Ray must be running.

    Also returns how many networks teach. Each network's predictions are stored beside the rows, so
    that a killed search can resume.
    """
    resources = needs()
    teach = ray.remote(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0))(_teach)
    seeds = range(config.seed + 1, config.seed + 1 + num_teachers)
    taught = [teach.remote(folder, encoder, replace(config, seed=seed)) for seed in seeds]
    logits = []
    for number, answer in enumerate(taught, start=1):
        logit = ray.get(answer)
        if logit is None:
            print_progress(f"teacher {number} diverged and is left out")
        else:
            logits.append(logit)
            print_progress(f"teacher {number}/{num_teachers} is trained")
    return mixed(rows, logits, rival), len(logits)


def _teach(folder: Path, encoder: Encoder, config: FitConfig) -> NDArray[np.float32] | None:
    """Train a network, unless that is done, and return its logits [N] on the training rows.

    Returns None if the training diverges.
    """
    path = folder / f"teacher-{config.seed}.npy"
    if path.exists():
        return np.asarray(np.load(path), np.float32)
    torch.set_num_threads(1)
    rows, valid = (Inputs.map(folder, name) for name in ("train", "valid"))
    try:
        state = run(rows, valid, encoder, config, device=device())
    except Diverged:
        return None
    logit = Model.of(encoder, config.network, state.last).network.logit(rows.x).numpy()
    with file_draft_of(path) as draft, draft.open("wb") as file:
        np.save(file, logit)
    return np.asarray(logit, np.float32)
