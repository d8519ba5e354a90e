"""Which arm a viewer is assigned to: sticky, and growing a share moves viewers only into it."""

from __future__ import annotations

import math

from serve.hashing import hash64
from serve.settings import Arm, Experiment


def assign(experiment: Experiment, viewer: str | None) -> Arm:
    """The viewer's arm by weighted rendezvous hash of (salt, arm, viewer).

    Each arm draws −share / ln(u) with u from the hash; the highest draw wins, with probability equal to the
    share (Schindelhauer and Schomaker 2005, logarithmic method). An anonymous viewer gets the first arm.
    """
    if viewer is None or len(experiment.arms) == 1:
        return experiment.arms[0]
    return max(experiment.arms, key=lambda arm: _draw(experiment.salt, arm, viewer))


def _draw(salt: str, arm: Arm, viewer: str) -> float:
    uniform = (hash64(f"{salt}\x1f{arm.name}\x1f{viewer}") + 0.5) / 2**64
    return -arm.share / math.log(uniform) if arm.share > 0 else 0.0
