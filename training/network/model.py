"""A trained model in memory: encoder, network and calibration, from features to predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve.features.matrix import Matrix
from serve.model.encoder import Encoder
from serve.model.graph import Calibration
from training.network.network import EVALUATION_BATCH, Network, NetworkConfig

# The identity: the probability is the sigmoid of the network's logit.
UNCALIBRATED = Calibration(1.0, 0.0)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread within the block.

    Networks as small as these gain nothing from a second thread. On busy cores, the threads wait
    for each other: a network of width 64 was eight times slower with two threads.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class Model:
    """A trained network with its encoder and calibrations, as it is exported."""

    encoder: Encoder
    network: Network
    # The calibration of each outcome.
    calibrations: Sequence[Calibration]

    @classmethod
    def of(cls, encoder: Encoder, config: NetworkConfig, weights: Mapping[str, Tensor]) -> Model:
        """Build a model from the TabNet's state dict `weights`, without a calibration."""
        num_outcomes = len(weights["tabnet.final_mapping.weight"])
        network = Network(encoder, config, num_outcomes)
        network.tabnet.load_state_dict(weights)
        return cls(encoder, network.eval(), [UNCALIBRATED] * num_outcomes)

    def logits(self, matrix: Matrix) -> NDArray[np.float64]:
        """Return the network's logits [R, O], before calibration."""
        found = np.empty((len(matrix.numeric), len(self.calibrations)))
        with one_thread():
            for at in range(0, len(found), EVALUATION_BATCH):
                part = matrix.rows(slice(at, at + EVALUATION_BATCH))
                encoded = map(torch.from_numpy, self.encoder.encode(part.numeric, part.category))
                found[at : at + EVALUATION_BATCH] = self.network.logit(self.network.inputs(*encoded))
        return found

    def shares(self, matrix: Matrix) -> NDArray[np.float64]:
        """Return [R, O] the expected amount of each outcome if looked at, as a share of its cap.

        For an event, this is its probability.
        """
        a, b = np.array([(one.a, one.b) for one in self.calibrations]).T
        logit = a * self.logits(matrix) + b
        return np.asarray(1.0 / (1.0 + np.exp(-logit)), np.float64)
