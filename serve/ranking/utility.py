"""Utility: what a candidate is worth, from the predictions of each outcome and an arm's weights.

The utility is the sum of weight times prediction over the outcomes. A prediction is the share that
the model returns, times the amount that a share of 1 stands for: the outcome's cap, or one event.
With one outcome whose weight and cap are 1, the utility is the probability itself.

Shapes: B requests; R rows; O outcomes that a version predicts, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from serve.features.slots import F32, I64
from serve.features.surface import Surface
from serve.model.artifact import Artifact

# All weighings are forgotten once there are this many, because arms change live, and versions come
# and go.
MAX_WEIGHINGS = 64


class Weighing:
    """Weights of the outcomes that a version predicts, and the amounts that a share of 1 means."""

    def __init__(self, weights: Mapping[str, float], scales: Sequence[float]) -> None:
        # The weights by outcome, in the order of the version.
        self.weights = dict(weights)
        self.scales = list(scales)
        # True if the utility is the share of the only outcome, and so a probability.
        self.is_share = [*weights.values()] == self.scales == [1.0]
        # The type of an answer's predictions. It is as fast as a tuple, and JSON has the names. The
        # fields are numbered, because an outcome may have the name of a Python keyword.
        fields = {f"outcome_{k}": name for k, name in enumerate(weights)}
        self.told = msgspec.defstruct(
            "Predictions", [(field, float) for field in fields], rename=fields, gc=False
        )

    def utility(self, shares: F32) -> F32:
        """Return the utility `[R]` of shares `[R, O]`; NaN where a share is NaN."""
        return weighed(shares, [self], np.zeros(len(shares), np.int64))[0]


PROBABILITY = Weighing({"": 1.0}, [1.0])
"""The weighing of one outcome whose weight and cap are 1."""


class Weighings:
    """Weighings by arm and version, each made once."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._made: dict[tuple[object, ...], Weighing] = {}

    def of(self, weights: Mapping[str, float], artifact: Artifact | None) -> Weighing:
        """Return the weighing of a version's outcomes by the surface's weights and an arm's own.

        The arm's weights replace those of the surface. An outcome that neither weighs counts for
        nothing. Without a version, the outcomes are those that the surface predicts.
        """
        key = (artifact and artifact.version, *weights.items())
        if key not in self._made:
            if len(self._made) >= MAX_WEIGHINGS:
                self._made.clear()
            predicted = {name: one.scale for name, one in self._surface.predicted.items()}
            scales = artifact.outcomes if artifact else predicted
            effective = self._surface.worth | dict(weights)
            self._made[key] = Weighing(
                {name: effective.get(name, 0.0) for name in scales}, list(scales.values())
            )
        return self._made[key]

    def by_surface(self, artifact: Artifact | None, shares: F32) -> F32:
        """Return the utilities `[R]` of a version's shares `[R, O]` by the surface's weights."""
        return self.of({}, artifact).utility(shares)


def weighed(shares: F32, weighings: Sequence[Weighing], request_of_row: I64) -> tuple[F32, F32]:
    """Return the utility of each row of a batch `[R]`, and its predictions in units `[R, O]`.

    Both are NaN where a share is NaN. One outcome is added after the other, so that the utility of
    a row does not depend on other rows.

    Args:
        shares: `[R, O]`, where O is the number of outcomes of the version with the most. Rows of
            other versions use the first columns.
        weighings: The weighing of each request.
        request_of_row: The request `[R]` of each row.
    """
    distinct = list(dict.fromkeys(weighings))
    if all(weighing.is_share for weighing in distinct):
        return shares[:, 0], shares
    weights, scales = np.zeros((2, len(distinct), shares.shape[1]))
    for k, weighing in enumerate(distinct):
        weights[k, : len(weighing.scales)] = [*weighing.weights.values()]
        scales[k, : len(weighing.scales)] = weighing.scales
    # Mostly, all requests of a batch have the same weighing.
    if len(distinct) > 1:
        of_row = np.array([distinct.index(weighing) for weighing in weighings])[request_of_row]
        weights, scales = weights[of_row], scales[of_row]
    amounts = (shares * scales).astype(np.float32)
    total = np.zeros(len(amounts))
    for terms in (amounts * weights).T:
        total += terms
    return total.astype(np.float32), amounts
