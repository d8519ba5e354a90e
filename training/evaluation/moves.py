"""Say in plain sentences which features move the scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_FEATURES = 5
# A feature has a direction if at least this share of its changes moves the score in it.
SAME_WAY = 0.75


def moves(evaluation: Mapping[str, Any]) -> str:
    """Return what moves a score most, from the permutation importance of an evaluation."""
    lines = [line for line in evaluation["importance"] if line["logloss"] > 0][:MOST_FEATURES]
    if not lines:
        return "The importance of features was not measured."
    parts = [f"{evaluation['labels'][line['feature']]} ({way(line['rises'])})" for line in lines]
    return (
        f"What moves a score most: {'; '.join(parts)}. They are ordered by how much the logloss rises if a feature's "
        "values are shuffled over these rows. They describe the model, not causes."
    )


def way(rises: float | None) -> str:
    """Return in words how a score moves as a value rises. `rises` is as in `importance`."""
    if rises is None:
        return "by value"
    named = {rises >= SAME_WAY: "raises it", rises <= 1 - SAME_WAY: "lowers it"}
    return named.get(True, "either way, by the other features")
