"""Examination of positions: how often people look at each, relative to the first one.

Training removes its effect from scores, evaluation puts it back, and manifests store it. By the
position-based model, P(label) of a candidate shown at a position is its score, P(label | looked
at), times the examination of the position (Craswell et al. 2008, "An experimental comparison of
click position-bias models"). Scores absorb the examination of the first position, so it is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Where an examination comes from: exposures whose order was drawn at random, an experiment's arms,
# the log as it was shown, or nowhere, because position bias is not removed.
Source = Literal["explored", "arms", "learned", "ignored"]

# The positions, counted from 1, that `describe` shows.
SHOWN = (2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Examination:
    """Examination by position, from 0. Positions after the last one have its value.

    Attributes:
        source: where it comes from. `ignored` means that it is 1 at each position.
        theta: the examination of each position, which is 1 for the first.
        error: the standard error of its logarithm at each position.
        events: how many label events it was estimated from.
        pinned: how many rows were left out, because requests chose their places.
    """

    source: Source = "ignored"
    theta: Sequence[float] = (1.0,)
    error: Sequence[float] = (0.0,)
    events: int = 0
    pinned: int = 0

    def at(self, position: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the examination `[N]` of positions `[N]`."""
        return np.asarray(self.theta, np.float64)[np.minimum(position, len(self.theta) - 1)]

    def describe(self) -> str:
        """Return a line of text with the source and the examination of some positions."""
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
        """Return the examination of each outcome of a manifest."""
        return [cls(**about["examination"]) for about in manifest["outcomes"].values()]


IGNORED = Examination()


def at_positions(examinations: Sequence[Examination], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the examination `[N, O]` of each outcome at positions `[N]`."""
    return np.stack([examination.at(position) for examination in examinations], axis=1)
