"""Boost: raise or lower the utility of the candidates that meet conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve.config.slate import Boost
from serve.features.slots import F32, I64, Bools


def boosted(score: F32, order: I64, boosts: Sequence[Boost], met: Sequence[Bools]) -> I64:
    """Return the order `[C]` by boosted utility; ties and unscored ones keep the given order.

    `score` `[C]` are utilities, NaN where unscored, and `met` `[C]` tells for each boost which
    candidates meet its conditions.
    """
    if not any(here.any() for here in met):
        return order
    key = -score.astype(np.float64)
    for boost, here in zip(boosts, met, strict=True):
        key[here] -= boost.by
    # NaN sorts last.
    return order[key[order].argsort(kind="stable")]
