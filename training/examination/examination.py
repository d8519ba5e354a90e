"""Examination of each position: training removes it, evaluation restores it, manifests keep it.

P(label) of a candidate shown at a position is its score, P(label | looked at), times the
examination of the position (position-based model, Craswell et al. 2008, "An experimental comparison
of click position-bias models"). Scores absorb the examination of the first position, so it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# From exposures in randomised order, from arms to which viewers were assigned at random, from the
# log as shown, or not removed.
Source = Literal["explored", "arms", "learned", "ignored"]

# Positions, from 1, of the line for people.
SHOWN = (2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Examination:
    """Examination by position, from 0; positions after the last one have its value.

    Attributes:
        source: Where it comes from; `ignored` is 1 at each position.
        theta: Examination of each position, of the first one 1.
        error: Standard error of its logarithm at each position.
        events: Label events that it was estimated from.
        pinned: Rows that were left out, because requests chose their places.
    """

    source: Source = "ignored"
    theta: Sequence[float] = (1.0,)
    error: Sequence[float] = (0.0,)
    events: int = 0
    pinned: int = 0

    def at(self, position: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the examination of positions i64 [N], [N]."""
        return np.asarray(self.theta, np.float64)[np.minimum(position, len(self.theta) - 1)]

    def describe(self) -> str:
        """Return a line for people: the source, and the examination of some positions."""
        if self.source == "ignored":
            return "position bias: not removed (ignored, impressions by clients, or too few labels)"
        known = list(enumerate(zip(self.theta, self.error, strict=True), 1))
        cells = [f"{at:.2f} ± {at * error:.2f} at {k}" for k, (at, error) in known if k in SHOWN]
        remedy = "; an arm's `explore` would measure it" if self.source == "learned" else ""
        found = "measured between arms" if self.source == "arms" else self.source
        without = f", without {self.pinned:,} pinned rows" if self.pinned else ""
        events = f"{self.events:,} label events{without}"
        return f"position bias: examination {found} from {events}, {', '.join(cells)}{remedy}"

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> list[Examination]:
        """Return that of each outcome of a manifest."""
        return [cls(**about["examination"]) for about in manifest["outcomes"].values()]


IGNORED = Examination()


def at_positions(examinations: Sequence[Examination], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the examination of each outcome at positions i64 [N], [N, O]."""
    return np.stack([examination.at(position) for examination in examinations], axis=1)
