"""Say in plain sentences which features move the scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_FEATURES = 5
# A feature has a direction if so large a share of its changes moves the score that way.
SAME_WAY = 0.75


def moves(evaluation: Mapping[str, Any]) -> str:
    """Return what moves a score most, from the permutation importance of an evaluation."""
    lines = [line for line in evaluation.get("importance") or () if line["logloss"] > 0][:MOST_FEATURES]
    if not lines:
        return "No importance of features was measured."
    # Evaluations of earlier releases have neither labels nor directions.
    labels = evaluation.get("labels", {})
    parts = [f"{labels.get(line['feature'], line['feature'])} ({_way(line.get('rises'))})" for line in lines]
    return (
        f"What moves a score most: {'; '.join(parts)}. The order is that of the logloss lost if a feature's values "
        "are shuffled over these rows. This is no statement about causes."
    )


def _way(rises: float | None) -> str:
    if rises is None:
        return "by value"
    if SAME_WAY > rises > 1 - SAME_WAY:
        return "either way, by the other features"
    return "raises it" if rises >= SAME_WAY else "lowers it"
