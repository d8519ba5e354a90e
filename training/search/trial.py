"""Trial: train and evaluate one network of a search. Ray Tune runs it in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch
from scipy.special import expit

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder
from training.fit.loop import FitConfig, State, run
from training.network.model import Model
from training.network.network import Inputs
from training.search.budget import work
from training.search.leaderboard import Judged
from training.search.space import Space


def run_trial(
    point: Mapping[str, Any], folder: Path, encoder: Encoder, base: FitConfig, judged: Judged
) -> None:
    """Train the network of a point, and report its validation logloss after each epoch.

    The rows `train` and `valid`, which `Inputs.save` wrote to `folder`, are mapped into memory, so
    that all trials share them. `judged` belongs to the rows `valid`. No trial changes the settings
    in `base`.
    """
    torch.set_num_threads(1)
    config = Space.config(point, base)
    train, valid = (Inputs.map(folder, name) for name in ("train", "valid"))

    def after_epoch(state: State) -> None:
        # The last epoch is reported below, with all measures.
        if len(state.history) < config.epochs:
            ray.tune.report(report(state, config, train, valid))

    try:
        state = run(train, valid, encoder, config, after_epoch=after_epoch, device=device())
        found = verdict(state, encoder, config, valid, judged)
        ray.tune.report(report(state, config, train, valid) | found)
    # Any error is reported on the leaderboard and ends only this trial.
    except Exception as error:
        what = "" if isinstance(error, TabrankError) else f"{type(error).__name__}: "
        ray.tune.report({"percent": 100, "valid_logloss": float("inf"), "failed": f"{what}{error}"})


def device() -> torch.device:
    """Return the device to train on in this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def num_at_once() -> int:
    """Return how many networks are trained in parallel."""
    return int(ray.cluster_resources()["CPU"])


def needs() -> dict[str, float]:
    """Return the Ray resources of one training: a CPU, and a share of the GPUs if there are any."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    return {"cpu": 1.0} | ({"gpu": gpus / resources["CPU"]} if gpus else {})


def report(state: State, config: FitConfig, train: Inputs, valid: Inputs) -> dict[str, Any]:
    """Return the validation logloss and AUC after an epoch, and their cost so far."""
    line, done = state.history[-1], len(state.history)
    return {
        "percent": 100 * done // config.epochs,
        "share": done / config.epochs,
        "valid_logloss": line["valid_logloss"],
        "valid_auc": line["valid_auc"],
        "seconds": sum(past["seconds"] for past in state.history),
        "rows": work(done, len(train), len(valid)),
    }


def verdict(
    state: State, encoder: Encoder, config: FitConfig, valid: Inputs, judged: Judged
) -> dict[str, Any]:
    """Return NDCG and losses on the labels as shown, and the history, of a finished run."""
    network = Model.of(encoder, config.network, state.last).network
    share, theta = expit(network.logit(valid.x).double().numpy()), valid.examination.double().numpy()
    return {
        "valid_ndcg": judged.ndcg(share @ judged.per_share),
        "losses": judged.losses(theta * share),
        "history": list(state.history),
    }
