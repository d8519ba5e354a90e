"""Boost: raise or lower the utility of the candidates that meet conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve.config.slate import Boost
from serve.features.slots import F32, I64, Bools


def boosted(score: F32, order: I64, boosts: Sequence[Boost], met: Sequence[Bools]) -> I64:
    """Return the order of the scored candidates by boosted utility; ties keep the given order.

    `score` `[C]` are utilities, `order` `[S]` the scored candidates, best first, and `met` `[C]`
    tells for each boost which candidates meet its conditions.
    """
    utility = score.astype(np.float64)
    for boost, here in zip(boosts, met, strict=True):
        utility += boost.by * here
    return order[np.argsort(-utility[order], kind="stable")]
