"""Models that ranked for each arm; an arm that changed its model mixes two treatments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from training.experiment.window import utc

# Rung of answers that no model ranked, in any arm.
FALLBACK = "fallback"
NO_MODEL = "no model"


def treatments(here: pd.DataFrame, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return by arm the model versions that ranked in the window, in order of first exposure.

    Each has its number of `exposures`, and the times of the first and the last. Fallbacks are
    left out. The log does not record which order an arm without a model used.
    """
    ranked = here[here["rung"] != FALLBACK]
    ranked_by = {}
    for name in names:
        ours = ranked[ranked["arm"] == name]
        models = ours["model"].astype(object).fillna(NO_MODEL)
        ranked_by[name] = [
            {
                "model": model,
                "exposures": len(times),
                "first": utc(times.iloc[0]),
                "last": utc(times.iloc[-1]),
                "last_ms": int(times.iloc[-1]),
            }
            for model, times in ours["ts_ms"].groupby(models, sort=False)
        ]
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
