"""Distillation: what the mean of several networks says, as labels for one (Hinton, Vinyals and Dean 2015).

Networks that differ by their seed alone err apart: the mean of a few is better than each, and one network that is
taught by it keeps most of that, at the cost of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from serve.model.encoder import Encoder
from training.fit.loop import Diverged, FitConfig, run
from training.network.inputs import EVALUATION_BATCH, Inputs
from training.network.network import Network
from training.network.position_bias import Bias
from training.search.trial import device, needs

SHARE = 0.7
"""Of a label, how much is the teachers' word; the rest is what was seen."""


def distilled(
    label: NDArray[np.float32],
    folder: Path,
    encoder: Encoder,
    config: FitConfig,
    *,
    num_teachers: int,
    say: Callable[[str], None],
) -> NDArray[np.float32]:
    """Labels [N] drawn from `label` towards the mean of `num_teachers` networks trained on it.

    The rows, `train` and `valid` of `Inputs.save`, lie in `folder`; each teacher's word is kept beside them, so that
    a killed search goes on. Ray must run.
    """
    asks = needs()
    teach = ray.remote(num_cpus=asks["cpu"], num_gpus=asks.get("gpu", 0))(_teach)
    said: dict[int, NDArray[np.float32]] = {}
    pending = {}
    for number in range(1, num_teachers + 1):
        path = _path(folder, number)
        if path.exists():
            said[number] = np.load(path)
        else:
            pending[teach.remote(folder, encoder.to_json(), replace(config, seed=config.seed + number))] = (
                number
            )
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        number = pending.pop(done)
        word = ray.get(done)
        if word is None:
            say(f"teacher {number} diverged and is left out")
            continue
        said[number] = word
        partial = _path(folder, number).with_suffix(".partial.npy")
        np.save(partial, said[number])
        partial.replace(_path(folder, number))
        say(f"teacher {len(said)}/{num_teachers} is trained")
    if not said:
        return label
    mean = np.mean(list(said.values()), axis=0)
    return np.asarray(SHARE / (1.0 + np.exp(-mean)) + (1.0 - SHARE) * label, np.float32)


def _path(folder: Path, number: int) -> Path:
    return folder / f"teacher-{number}.npy"


def _teach(folder: Path, as_json: str, config: FitConfig) -> NDArray[np.float32] | None:
    """The logits [N] of a network on the rows that it was trained on, as they were shown; None if it diverges."""
    torch.set_num_threads(1)
    encoder = Encoder.from_json(as_json)
    rows, valid = (Inputs.map(folder, name) for name in ("train", "valid"))
    try:
        state = run(rows, valid, encoder, config, device=device())
    except Diverged:
        return None
    network = Network(encoder, config.network).eval()
    network.tabnet.load_state_dict(state.last)
    bias = Bias(config.position_bias)
    bias.load_state_dict(state.bias)
    logit = torch.cat([network.logit(x) for x in torch.split(rows.x, EVALUATION_BATCH)])
    with torch.no_grad():
        return np.asarray(bias(logit, rows.position).numpy(), np.float32)
