"""The serving cost of a network: µs per candidate of its exported graph, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from serve.model.encoder import Encoder
from serve.model.scorers import one_thread_session
from training.evaluation.rivals import us_per_candidate as measured
from training.network.export import export, folded_of
from training.network.model import UNCALIBRATED
from training.network.network import Network, NetworkConfig
from training.search.leaderboard import BoardEntry

# The settings of a network that determine its serving cost.
SHAPE = ("width", "n_steps", "mask_type", "n_independent", "n_shared")


def us_per_candidate(encoder: Encoder, config: NetworkConfig, matrix: Matrix, num_outcomes: int) -> float:
    """Measure the µs per candidate of a network of this shape, on one thread, with these rows.

    The time includes look-ups, the network and the calibration. The weights are random, because the
    cost does not depend on them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(encoder, config, num_outcomes).eval()
    session = one_thread_session(export(folded_of(network, [UNCALIBRATED] * num_outcomes), exact=False))

    def score(matrix: Matrix) -> NDArray[np.float64]:
        arrays: tuple[NDArray[Any], ...] = encoder.encode(matrix.numeric, matrix.category)
        parts = zip(("numeric", "hot", "index"), arrays, strict=True)
        feeds = {name: array for name, array in parts if array.shape[1]}
        return np.asarray(session.run(["shares"], feeds)[0])

    return measured(score, matrix)


class Costs:
    """Serving costs by the shape of a network, in µs per candidate.

    Each shape is measured only once in a search. The cost decides which network may win, so it must
    not change with the load of the machine.
    """

    def __init__(self, measure: Callable[[NetworkConfig], float], past: Iterable[BoardEntry]) -> None:
        """Start with the costs that earlier calls measured, which are in the entries `past`."""
        self._measure = measure
        self._known: dict[tuple[Any, ...], float] = {}
        for entry in past:
            if entry.us_per_candidate is not None:
                shape = tuple(entry.point[name] for name in SHAPE)
                self._known.setdefault(shape, entry.us_per_candidate)

    def __call__(self, network: NetworkConfig) -> float:
        """Return the µs per candidate of networks of this shape."""
        shape = tuple(getattr(network, name) for name in SHAPE)
        if shape not in self._known:
            self._known[shape] = self._measure(network)
        return self._known[shape]
