"""What ranked for each arm: an arm that changed it meanwhile was two treatments, and its effect is of neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.experiment.served_log import NONE, Exposures
from training.experiment.window import utc

FALLBACK = "fallback"  # the rung on which no model ranked, in whatever arm
NO_MODEL = "no model"


def treatments(
    here: Exposures, names: Sequence[str], codes: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """By arm, the versions of the model that ranked in the window, in the order in which they came.

    Each with its `exposures`, first and last; fallbacks are left out. Which order it was without a model (popular,
    shuffle, noop) the log does not say.
    """
    fallback = here.rungs.index(FALLBACK) if FALLBACK in here.rungs else len(here.rungs)
    told = {}
    for name, code in zip(names, codes, strict=True):
        ours = here.rows((here.arm == code) & (here.rung != fallback))
        found = []
        for model in dict.fromkeys(ours.model.tolist()):
            times = ours.ts_ms[ours.model == model]
            found.append(
                {
                    "model": NO_MODEL if model == NONE else here.models[model],
                    "exposures": len(times),
                    "first": utc(int(times[0])),
                    "last": utc(int(times[-1])),
                    "last_ms": int(times[-1]),
                }
            )
        told[name] = found
    return told


def changes(told: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A warning for each arm that ranked by several, with the remedy."""
    warnings = []
    for arm, found in told.items():
        if len(found) > 1:
            newest = max(found, key=lambda one: one["last_ms"])
            since_ms = max(one["last_ms"] for one in found if one is not newest) + 1
            since = utc(-(-since_ms // 1_000) * 1_000)
            said = ", ".join(
                f"{one['model']} ({one['exposures']:,} exposures, {one['first']} to {one['last']})"
                for one in found
            )
            warnings.append(
                f"the treatment changed: arm {arm!r} ranked by {said}, and the effect is of them all together; "
                f'declare `start: "{since}"` in cluster.yaml to analyse {newest["model"]} alone'
            )
    return warnings
