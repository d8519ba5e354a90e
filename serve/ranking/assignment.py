"""Which arm ranks for a viewer, and whether that counts: sticky, and growing a share moves viewers only into it."""

from __future__ import annotations

import math
from typing import NamedTuple

from serve.config.settings import HOLDOUT, POPULAR, ApiKey, Arm, Experiment
from serve.contract.errors import RequestError
from serve.contract.hashing import hash64
from serve.contract.messages import nearest, quoted


class Assignment(NamedTuple):
    """The arm that ranks, and the experiment in which the viewer takes part; None for none."""

    arm: Arm
    experiment: str | None


def assign(experiment: Experiment, viewer: str | None, now_ms: int) -> Assignment:
    """The viewer's arm by weighted rendezvous hash of (salt, arm, viewer).

    Each arm draws −share / ln(u) with u from the hash; the highest draw wins, with probability equal to the
    share (Schindelhauer and Schomaker 2005, logarithmic method). Anonymous viewers, and everyone before its start and
    after its end, take no part and get the arm with the largest share, of equals a popular one. Those held out get the
    popular order; by a hash of their own, so they are the same in every experiment.
    """
    if viewer is not None and experiment.holdout and _uniform(HOLDOUT, viewer) < experiment.holdout:
        return Assignment(Arm(HOLDOUT, POPULAR, experiment.holdout), None)
    if viewer is None or not experiment.runs(now_ms):
        return Assignment(max(experiment.arms, key=lambda arm: (arm.share, arm.scorer == POPULAR)), None)
    if len(experiment.arms) == 1:
        return Assignment(experiment.arms[0], experiment.name)
    arm = max(experiment.arms, key=lambda arm: _draw(experiment.salt, arm, viewer))
    return Assignment(arm, experiment.name)


def chosen(experiment: Experiment, name: str, key: ApiKey | None) -> Arm:
    """The arm that a tester names, in place of the one assigned.

    Raises:
        RequestError: 403 where the caller's key does not allow it; 422 where there is no such arm.
    """
    if key is None or not key.may_choose_arm:
        detail = "X-Arm needs a key in X-Api-Key that may choose the arm (may_choose_arm); leave it out"
        raise RequestError(403, "forbidden", detail)
    arms = {arm.name: arm for arm in experiment.arms}
    if name not in arms:
        detail = f"X-Arm: there is no arm {quoted(name)}{nearest(name, arms)}; there are {', '.join(arms)}"
        raise RequestError(422, "invalid request", detail)
    return arms[name]


def _draw(salt: str, arm: Arm, viewer: str) -> float:
    return -arm.share / math.log(_uniform(salt, f"{arm.name}\x1f{viewer}")) if arm.share > 0 else 0.0


def _uniform(salt: str, name: str) -> float:
    """In (0, 1), neither end included."""
    return ((hash64(f"{salt}\x1f{name}") >> 12) + 0.5) / 2**52
