"""Utility: what a candidate is worth, from the predictions of each outcome and an arm's weights.

The utility is the sum of weight times prediction, and a prediction is a share of its outcome's cap,
times that cap. With one outcome whose weight and cap are 1, the utility is the probability itself.

Shapes: B requests; R rows; O outcomes that a version predicts, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serve.config.settings import Arm
from serve.features.slots import F32, F64, I64
from serve.features.surface import Surface
from serve.model.artifact import Artifact

# Forget all weighings once there are so many: arms change live, and versions come and go.
MAX_WEIGHINGS = 64


class Weighing:
    """Weights of the outcomes that a version predicts, and the amounts that a share of 1 is."""

    def __init__(self, weights: Mapping[str, float], scales: Sequence[float]) -> None:
        # By outcome, in the order of the version.
        self.weights = dict(weights)
        self.scales = np.array(scales, np.float64)
        self.coefficients: F64 = np.array(list(weights.values()), np.float64) * self.scales
        # Whether the utility is the share of the only outcome, so a probability.
        self.is_share = self.coefficients.tolist() == [1.0]

    def utility(self, shares: F32) -> F32:
        """Return the utility `[R]` of shares `[R, O]`, NaN where a share is."""
        return utilities(shares, [self], np.zeros(len(shares), np.int64))


PROBABILITY = Weighing({"": 1.0}, [1.0])
"""The weighing of one outcome whose weight and cap are 1."""


class Weighings:
    """Weighings by arm and version, each made once."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._made: dict[tuple[object, ...], Weighing] = {}

    def of(self, weights: Mapping[str, float], artifact: Artifact | None) -> Weighing:
        """Return how the surface's weights, but for those of an arm, weigh a version's outcomes.

        An outcome that neither weighs counts for nothing. Without a version, the outcomes are those
        that the surface predicts.
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


def effective_weights(surface: Surface, arm: Arm) -> dict[str, float]:
    """Return an arm's own weights, and the surface's of outcomes that it does not name."""
    return surface.worth | dict(arm.weights) if arm.by_model else {}


def utilities(shares: F32, weighings: Sequence[Weighing], request_of_row: I64) -> F32:
    """Return the utility of each row of a batch `[R]`, NaN where a share is.

    Args:
        shares: `[R, O]` with the outcomes of the version that has most; those of others come first.
        weighings: That of each request.
        request_of_row: `[R]`.
    """
    if all(weighing.is_share for weighing in weighings):
        return shares[:, 0]
    coefficients = np.zeros((len(weighings), shares.shape[1]))
    for b, weighing in enumerate(weighings):
        coefficients[b, : len(weighing.coefficients)] = weighing.coefficients
    return utility(shares, coefficients[request_of_row]).astype(np.float32)


def utility(shares: F32, coefficients: F64) -> F64:
    """Return the sum of shares `[R, O]` times coefficients, `[O]` or `[R, O]`.

    It adds one outcome after the other, so that a row's utility does not depend on other rows.
    """
    terms = shares * coefficients
    total: F64 = np.zeros(len(terms))
    for term in terms.T:
        total += term
    return total
