"""Slices: the measures on parts of the rows, to find where a good model performs badly.

Rows of a slice are ranked among themselves. A part with few rows gets no figures, which would be
noise. Where a feature is a candidate's age and some candidates are young, a report shows what the
model knows of a candidate in its first minute and in its first ten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from serve.features.kinds.attributes import Age, Category
from serve.features.slots import Bools
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
# Parts by a candidate's age, and the ages in seconds that end all but the last.
AGES = ("first minute", "first ten minutes (after the first)", "older")
AGE_ENDS_S = (60, 600)


def slices(
    data: Dataset, model: Contender, popular: Contender, surface: Surface, encoder: Encoder
) -> list[dict[str, Any]]:
    """Measure each part of the rows; return one object for each.

    `by` and `value` name the part, then `rows`, `slates`, `positives`; the measures of `model` and
    `popular`, and `paired` with `ndcg@10`, `se`. The last three are None where the rows are too
    few. `encoder` names categories.
    """
    return [
        {"by": by, "value": value} | _measured(model, popular, part)
        for by, value, part in _parts(data, surface, encoder)
        if part.any()
    ]


def _parts(data: Dataset, surface: Surface, encoder: Encoder) -> Iterator[tuple[str, str, Bools]]:
    """Yield what divides the rows, value and mask of each part; frequent categories first."""
    yield "viewer", "cold (no exposure before)", data.viewer_seen == 0
    yield "viewer", "seen before", data.viewer_seen != 0
    yield "candidate", "new (never shown before)", data.candidate_seen == 0
    yield "candidate", "shown before", data.candidate_seen != 0
    for k, name in enumerate(data.columns.single):
        kind = surface.features[name]
        values, code = np.unique(data.matrix.category[:, k], return_inverse=True)
        # Allow one more value for rows without one.
        is_sliced = isinstance(kind, Category) and kind.field.owner in ("viewer", "context")
        if is_sliced and 2 <= len(values) <= MAX_VALUES + 1:
            known = {0: "(missing)"} | encoder.entry_by_hash.get(name, {})
            for i in np.argsort(-np.bincount(code), kind="stable").tolist():
                value = int(values[i])
                yield name, known.get(value, vocabulary_entry(value)), code == i
    for k, name in enumerate(data.columns.numeric):
        kind, age_s = surface.features[name], data.matrix.numeric[:, k]
        # Where no candidate is young, age divides nothing.
        if isinstance(kind, Age) and kind.field.owner == "candidate" and (age_s < AGE_ENDS_S[-1]).any():
            part = np.where(np.isnan(age_s), len(AGES), np.digitize(age_s, AGE_ENDS_S))
            yield from ((name, value, part == i) for i, value in enumerate((*AGES, "(missing)")))
    band = data.ts_ms // 3_600_000 % 24 // HOURS
    for i in range(24 // HOURS):
        yield "hour (UTC)", f"{i * HOURS:02d}–{i * HOURS + HOURS:02d}", band == i


def _measured(model: Contender, popular: Contender, part: Bools) -> dict[str, Any]:
    ours, theirs = model.take(part), popular.take(part)
    slates = ours.slates
    rows, positives = len(slates.label), int(slates.positives.sum())
    result: dict[str, Any] = {"rows": rows, "slates": len(slates), "positives": positives}
    if rows < MIN_ROWS or min(positives, rows - positives) < MIN_OF_EACH_LABEL:
        return result | {"model": None, "popular": None, "paired": None}
    difference, error = ours.minus(theirs, "ndcg@10")
    pair = {"ndcg@10": difference, "se": error}
    return result | {"model": ours.measures(), "popular": theirs.measures(), "paired": pair}
