"""Slices: the measures on parts of the rows, to find where a good model performs badly.

Rows of a slice are ranked among themselves. A part with few rows gets no figures, which would be
noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.kinds.attributes import Category
from serve.features.surface import Surface
from serve.model.encoder import Encoder, vocabulary_entry
from training.data.dataset import Dataset
from training.evaluation.metrics import Contender

MIN_ROWS = 500
MIN_OF_EACH_LABEL = 20
# Do not slice by a category of more values: its parts are small, and some would look bad by chance.
MAX_VALUES = 20
# Hours in one band of the day.
HOURS = 3

Mask = NDArray[np.bool_]


def slices(
    data: Dataset, model: Contender, popular: Contender, surface: Surface, encoder: Encoder
) -> list[dict[str, Any]]:
    """Measure each part of the rows; return one object for each.

    `by` and `value` name the part, then `rows`, `slates`, `positives`; the measures of `model` and
    `popular`, and `paired` with `ndcg@10`, `se`. The last three are None where the rows are too
    few. `encoder` names categories.
    """
    return [
        {"by": by, "value": value} | _measured(model, popular, values == value)
        for by, values in _parts(data, surface, encoder).items()
        for value in np.unique(values).tolist()
    ]


def _parts(data: Dataset, surface: Surface, encoder: Encoder) -> dict[str, NDArray[np.str_]]:
    """Return the part of each row, `[N]`, by what divides the rows."""
    parts = {
        "viewer": np.where(data.viewer_seen == 0, "cold (no exposure before)", "seen before"),
        "candidate": np.where(data.candidate_seen == 0, "new (never shown before)", "shown before"),
    }
    for k, name in enumerate(data.columns.single):
        kind = surface.features[name]
        values, code = np.unique(data.matrix.category[:, k], return_inverse=True)
        # Allow one more value for rows without one.
        is_sliced = isinstance(kind, Category) and kind.field.owner in ("viewer", "context")
        if is_sliced and 2 <= len(values) <= MAX_VALUES + 1:
            known = {0: "(missing)"} | encoder.entry_by_hash.get(name, {})
            parts[name] = np.array([known.get(v, vocabulary_entry(v)) for v in values.tolist()])[code]
    bands = np.array([f"{hour:02d}–{hour + HOURS:02d}" for hour in range(0, 24, HOURS)])
    parts["hour (UTC)"] = bands[data.ts_ms // 3_600_000 % 24 // HOURS]
    return parts


def _measured(model: Contender, popular: Contender, part: Mask) -> dict[str, Any]:
    ours, theirs = model.take(part), popular.take(part)
    slates = ours.slates
    rows, positives = len(slates.label), int(slates.positives.sum())
    result: dict[str, Any] = {"rows": rows, "slates": len(slates), "positives": positives}
    if rows < MIN_ROWS or min(positives, rows - positives) < MIN_OF_EACH_LABEL:
        return result | {"model": None, "popular": None, "paired": None}
    difference, error = ours.minus(theirs, "ndcg@10")
    pair = {"ndcg@10": difference, "se": error}
    return result | {"model": ours.measures(), "popular": theirs.measures(), "paired": pair}
