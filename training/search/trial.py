"""A trial: one network trained on the search's rows, as Ray Tune runs it in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from serve.encoder import Encoder
from serve.errors import TabrankError
from training.calibrate import fit_platt
from training.evaluation.metrics import Slates, measure
from training.loop import FitConfig, Inputs, State, run
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
        state = run(
            job.rows("train"),
            valid,
            encoder,
            config,
            after_epoch=after_epoch,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )
    except TabrankError as error:
        ray.tune.report({"percent": 100, "valid_logloss": float("inf"), "failed": str(error)})
        return
    network = Network(encoder, config.network).eval()
    network.tabnet.load_state_dict(state.last)
    with torch.no_grad():
        logit = torch.cat([network(x)[0] for x in torch.split(valid.x, 16_384)]).double().numpy()
    calibration = fit_platt(logit, valid.label.numpy())
    slates = Slates(valid.label.numpy(), job.slates())
    measured = measure(slates, logit, is_probability=False)
    ray.tune.report(
        {
            **_told(state, percent=100),
            "valid_ndcg": measured["ndcg@10"],
            "calibration": [calibration.a, calibration.b],
            "history": list(state.history),
        }
    )


def _told(state: State, percent: int) -> dict[str, Any]:
    line = state.history[-1]
    return {
        "percent": percent,
        "share": percent / 100,
        "valid_logloss": line["valid_logloss"],
        "valid_auc": line["valid_auc"],
        "seconds": sum(past["seconds"] for past in state.history),
    }
