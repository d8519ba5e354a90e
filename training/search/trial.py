"""A trial: one network trained on the search's rows, as Ray Tune runs it in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.tune
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from serve.encoder import Encoder
from serve.errors import TabrankError
from training.calibrate import fit_platt
from training.evaluation.metrics import measure
from training.evaluation.slates import Slates
from training.loop import EVALUATION_BATCH, FitConfig, Inputs, State, run
from training.network import Network
from training.search.space import Space


@dataclass(frozen=True)
class Job:
    """What all trials of a search share; the rows lie in `folder`, where workers map them into memory."""

    folder: Path
    encoder: str  # as JSON
    base: FitConfig
    num_rows: int  # by which the space was made

    def save(self, train: Inputs, valid: Inputs, slate: NDArray[np.int64]) -> None:
        """Writes the rows; `slate` [N] numbers the slates of the validation rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", train), ("valid", valid)):
            save_file({what: tensor.numpy() for what, tensor in vars(rows).items()}, self._path(name))
        save_file({"slate": slate}, self._path("slates"))

    def rows(self, name: str) -> Inputs:
        """The rows that `save` wrote, `train` or `valid`."""
        return Inputs(
            **{what: torch.from_numpy(array) for what, array in load_file(self._path(name)).items()}
        )

    def slates(self) -> NDArray[np.int64]:
        """The validation rows' slates."""
        return load_file(self._path("slates"))["slate"]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def run_trial(point: Mapping[str, Any], job: Job) -> None:
    """Trains the network of a point, reporting its validation logloss at each share of its schedule."""
    torch.set_num_threads(1)
    encoder = Encoder.from_json(job.encoder)
    config = Space(job.num_rows).config(point, job.base)
    valid = job.rows("valid")

    def after_epoch(state: State) -> None:
        if (done := len(state.history)) < config.epochs:  # the last comes with all measures, below
            ray.tune.report(_told(state, percent=100 * done // config.epochs))

    try:
        state = run(job.rows("train"), valid, encoder, config, after_epoch=after_epoch, device=device())
        found = _measured(state, encoder, config, valid, job.slates())
    except Exception as error:  # whatever it was belongs on the leaderboard, and ends this trial alone
        what = "" if isinstance(error, TabrankError) else f"{type(error).__name__}: "
        ray.tune.report({"percent": 100, "valid_logloss": float("inf"), "failed": f"{what}{error}"})
        return
    ray.tune.report(_told(state, percent=100) | found)


def device() -> torch.device:
    """What a network is trained on, here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def needs() -> dict[str, float]:
    """What one network asks of Ray: a CPU, and its share of the GPUs where there are any."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    return {"cpu": 1.0} | ({"gpu": gpus / resources["CPU"]} if gpus else {})


def _measured(
    state: State, encoder: Encoder, config: FitConfig, valid: Inputs, slate: NDArray[np.int64]
) -> dict[str, Any]:
    """The measures of the network as it would serve, which knows no position."""
    network = Network(encoder, config.network).eval()
    network.tabnet.load_state_dict(state.last)
    logit = torch.cat([network.logit(x) for x in torch.split(valid.x, EVALUATION_BATCH)]).double().numpy()
    label = valid.label.numpy()
    calibration = fit_platt(logit, label)
    found: dict[str, Any] = {
        "valid_ndcg": measure(Slates(label, slate), logit, is_probability=False)["ndcg@10"],
        "calibration": [calibration.a, calibration.b],
        "history": list(state.history),
    }
    if config.position_bias != "ignored":
        # its history knows the positions, as no rival does
        chance = 1.0 / (1.0 + np.exp(-(calibration.a * logit + calibration.b)))
        measured = measure(Slates(label, slate), chance, is_probability=True)
        found |= {"valid_logloss": measured["logloss"], "valid_auc": measured["auc"]}
    return found


def _told(state: State, percent: int) -> dict[str, Any]:
    line = state.history[-1]
    return {
        "percent": percent,
        "share": percent / 100,
        "valid_logloss": line["valid_logloss"],
        "valid_auc": line["valid_auc"],
        "seconds": sum(past["seconds"] for past in state.history),
    }
