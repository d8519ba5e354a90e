"""Experiment assignment: choose the arm that ranks for a viewer.

Assignment is sticky: raising an arm's share only moves viewers into that arm.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from serve.config.settings import HOLDOUT, POPULAR, ApiKey, Arm, Experiment
from serve.contract.errors import RequestError, did_you_mean
from serve.contract.hashing import hash64
from serve.contract.messages import quoted


class Assignment(NamedTuple):
    """The arm that ranks, and the experiment in which the viewer counts (None: in none)."""

    arm: Arm
    experiment: str | None


def assign(experiment: Experiment, viewer: str | None, now_ms: int) -> Assignment:
    """Return the viewer's arm by weighted rendezvous hash of (salt, arm, viewer).

    Each arm draws −share / ln(u), where u comes from the hash. The highest draw wins, with a
    probability equal to the share (Schindelhauer and Schomaker 2005, logarithmic method).

    Anonymous viewers do not take part, and no viewer does before the start or after the end. They
    get the arm with the largest share; among equal shares, a popular arm. Viewers in the holdout
    get the popular order. The holdout uses a hash of its own, so it is the same in every
    experiment.
    """
    if viewer is not None and experiment.holdout and _uniform(HOLDOUT, viewer) < experiment.holdout:
        return Assignment(Arm(HOLDOUT, POPULAR, experiment.holdout), None)
    if viewer is None or not experiment.runs(now_ms):
        return Assignment(max(experiment.arms, key=lambda arm: (arm.share, arm.scorer == POPULAR)), None)
    if len(experiment.arms) == 1:
        return Assignment(experiment.arms[0], experiment.name)
    arm = max(experiment.arms, key=lambda arm: _draw(experiment.salt, arm, viewer))
    return Assignment(arm, experiment.name)


def requested_arm(experiment: Experiment, name: str, key: ApiKey | None) -> Arm:
    """Return the arm that a tester requests instead of the assigned one.

    Raises:
        RequestError: 403 if the caller's key does not allow it; 422 if the arm does not exist.
    """
    if key is None or not key.may_choose_arm:
        detail = "X-Arm needs a key in X-Api-Key with may_choose_arm; leave X-Arm out"
        raise RequestError(403, "forbidden", detail)
    arms = {arm.name: arm for arm in experiment.arms}
    if name not in arms:
        detail = (
            f"X-Arm: there is no arm {quoted(name)}{did_you_mean(name, arms)}; the arms are {', '.join(arms)}"
        )
        raise RequestError(422, "invalid request", detail)
    return arms[name]


def _draw(salt: str, arm: Arm, viewer: str) -> float:
    return -arm.share / math.log(_uniform(salt, f"{arm.name}\x1f{viewer}")) if arm.share > 0 else 0.0


def _uniform(salt: str, name: str) -> float:
    """Return a number in the open interval (0, 1)."""
    return ((hash64(f"{salt}\x1f{name}") >> 12) + 0.5) / 2**52
