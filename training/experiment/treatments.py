"""Models that ranked for each arm; an arm that changed its model mixes two treatments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.experiment.served_log import NONE, Exposures
from training.experiment.window import utc

# Rung of answers that no model ranked, in any arm.
FALLBACK = "fallback"
NO_MODEL = "no model"


def treatments(
    here: Exposures, names: Sequence[str], codes: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Return by arm the model versions that ranked in the window, in order of first exposure.

    Each has its number of `exposures`, and the times of the first and the last. Fallbacks are
    left out. The log does not record which order an arm without a model used.
    """
    fallback = here.rungs.index(FALLBACK) if FALLBACK in here.rungs else len(here.rungs)
    ranked_by = {}
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
        ranked_by[name] = found
    return ranked_by


def change_warnings(ranked_by: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return a warning with the remedy for each arm that ranked with several models."""
    warnings = []
    for arm, found in ranked_by.items():
        if len(found) > 1:
            newest = max(found, key=lambda one: one["last_ms"])
            since_ms = max(one["last_ms"] for one in found if one is not newest) + 1
            since = utc(-(-since_ms // 1_000) * 1_000)
            models = ", ".join(
                f"{one['model']} ({one['exposures']:,} exposures, {one['first']} to {one['last']})"
                for one in found
            )
            warnings.append(
                f"the treatment changed: arm {arm!r} ranked by {models}, and the effect is that of all of them; "
                f'declare `start: "{since}"` in cluster.yaml to analyse only {newest["model"]}'
            )
    return warnings
