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
from torch.nn.functional import binary_cross_entropy_with_logits

from serve.contract.errors import TabrankError
from serve.model.encoder import Encoder
from serve.model.graph import Calibration
from training.evaluation.metrics import measure
from training.evaluation.slates import Slates, auc
from training.fit.loop import FitConfig, State, run
from training.network.calibrate import fit_platt
from training.network.inputs import EVALUATION_BATCH, Inputs, Rows, inputs
from training.network.network import Network
from training.search.budget import work
from training.search.space import Space


@dataclass(frozen=True)
class Job:
    """What all trials of a search share; the rows lie in `folder`, where workers map them into memory."""

    folder: Path
    encoder: str  # as JSON
    base: FitConfig

    def save(self, name: str, rows: Rows) -> None:
        """Writes the rows `train` or `valid`, for `Inputs.map`."""
        inputs(rows, Encoder.from_json(self.encoder), self.base.network).save(self.folder, name)

    @property
    def slates(self) -> Path:
        """Where the numbers of the validation rows' slates are, [N]."""
        return self.folder / "slates.npy"


def run_trial(point: Mapping[str, Any], job: Job) -> None:
    """Trains the network of a point, reporting its validation logloss at each share of its schedule."""
    torch.set_num_threads(1)
    encoder = Encoder.from_json(job.encoder)
    config = Space.config(point, job.base)
    train, valid = (Inputs.map(job.folder, name) for name in ("train", "valid"))
    referee = Referee(encoder, config, len(train), valid)

    def after_epoch(state: State) -> None:
        if len(state.history) < config.epochs:  # the last comes with all measures, below
            ray.tune.report(referee.report(state))

    try:
        state = run(train, valid, encoder, config, after_epoch=after_epoch, device=device())
        ray.tune.report(referee.verdict(state, np.load(job.slates)))
    except Exception as error:  # whatever it was belongs on the leaderboard, and ends this trial alone
        what = "" if isinstance(error, TabrankError) else f"{type(error).__name__}: "
        ray.tune.report({"percent": 100, "valid_logloss": float("inf"), "failed": f"{what}{error}"})


def device() -> torch.device:
    """What a network is trained on, here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def num_at_once() -> int:
    """How many networks are trained side by side."""
    return int(ray.cluster_resources()["CPU"])


def needs() -> dict[str, float]:
    """What one network asks of Ray: a CPU, and its share of the GPUs where there are any."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    return {"cpu": 1.0} | ({"gpu": gpus / resources["CPU"]} if gpus else {})


class Referee:
    """What is reported of a trial: measures of its network as it would serve, which knows no position."""

    def __init__(self, encoder: Encoder, config: FitConfig, num_train: int, valid: Inputs) -> None:
        self._config, self._num_train, self._valid = config, num_train, valid
        self._network = Network(encoder, config.network).eval()

    def report(self, state: State) -> dict[str, Any]:
        """After any epoch: validation logloss and AUC, and what they took."""
        line, done = state.history[-1], len(state.history)
        logloss, auc = line["valid_logloss"], line["valid_auc"]
        if self._config.position_bias != "ignored":
            # the history knows the positions, as no rival does
            logloss, auc, _ = self._without_position(self._logit(state))
        return {
            "percent": 100 * done // self._config.epochs,
            "share": done / self._config.epochs,
            "valid_logloss": logloss,
            "valid_auc": auc,
            "seconds": sum(past["seconds"] for past in state.history),
            "rows": work(done, self._num_train, len(self._valid)),
        }

    def verdict(self, state: State, slate: NDArray[np.int64]) -> dict[str, Any]:
        """After the last: the NDCG by slates [N], the calibration and the history too."""
        logit = self._logit(state)
        _, _, calibration = self._without_position(logit)
        slates = Slates(self._valid.label.numpy(), slate)
        return self.report(state) | {
            "valid_ndcg": measure(slates, logit, is_probability=False)["ndcg@10"],
            "calibration": [calibration.a, calibration.b],
            "history": list(state.history),
        }

    def _logit(self, state: State) -> NDArray[np.float64]:
        self._network.tabnet.load_state_dict(state.last)
        parts = [self._network.logit(x) for x in torch.split(self._valid.x, EVALUATION_BATCH)]
        return torch.cat(parts).double().numpy()

    def _without_position(self, logit: NDArray[np.float64]) -> tuple[float, float | None, Calibration]:
        """(logloss, AUC, calibration) of calibrated logits: as if for the first position, they are too high."""
        label = self._valid.label.numpy()
        calibration = fit_platt(logit, label)
        shown = calibration.a * logit + calibration.b
        logloss = binary_cross_entropy_with_logits(torch.from_numpy(shown), self._valid.label.double())
        return logloss.item(), auc(label, shown), calibration
