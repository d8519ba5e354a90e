"""Slices: measures on parts of the rows, to find where a good model performs badly.

The rows of a slice are ranked among themselves. A slice with few rows gets no figures, because they
would be noise. If a feature is the candidate's age and some candidates are young, slices also show
how well the model ranks candidates in their first minute and in their first ten minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri

from serve.contract.errors import TabrankError
from serve.features.kinds.attributes import Age, Category
from serve.features.slots import Bools
from serve.features.surface import Surface
from serve.model.encoder import Encoder, vocabulary_entry
from training.data.dataset import Dataset
from training.evaluation.metrics import Contender

MIN_ROWS = 500
MIN_OF_EACH_LABEL = 20
# A field with more values than this gives no slices and no segments. They would be small, and some
# would look bad by chance.
MAX_VALUES = 20
MISSING = "(missing)"
# The length of a slice by time of day, in hours.
HOURS = 3
# The slices by a candidate's age, and the ages in seconds at which all but the last end.
AGES = ("first minute", "first ten minutes (after the first)", "older")
AGE_ENDS_S = (60, 600)


def slices(
    data: Dataset, model: Contender, popular: Contender, surface: Surface, encoder: Encoder
) -> list[dict[str, Any]]:
    """Measure each part of the rows, and return one object for each.

    `by` and `value` name the part. `rows`, `slates` and `positives` are its counts. `model` and
    `popular` hold measures, and `paired` holds the difference in `ndcg@10` with its standard error
    `se`; these three are None if there are too few rows. `encoder` names categories.
    """
    return [
        {"by": by, "value": value} | _measured(model, popular, part)
        for by, value, part in _parts(data, surface, encoder)
        if part.any()
    ]


def segments(
    data: Dataset, model: Contender, popular: Contender, field: str, strings: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Measure the rows of each value of a field that `data.fields` holds, as `slices` does.

    `strings` spells categories by their hashes. `paired` also holds the `interval` of the
    difference, and what is `shown`: better, worse, or None. The intervals of all segments hold at
    once at 95 % (Bonferroni). A segment with too few rows, or with too few viewers whose order
    differs, has none.

    Raises:
        TabrankError: the field has too many values.
    """
    assert data.fields is not None
    owner, _, name = field.partition(".")
    values, code = np.unique(data.fields[owner][name], return_inverse=True)
    if len(values) > MAX_VALUES + 1:
        raise TabrankError(
            f"--by {field}: these rows have {len(values):,} values of it, and at most {MAX_VALUES} make segments"
        )
    parts = [
        {"by": field, "value": _spelled(values[i].item(), strings)} | _measured(model, popular, code == i)
        for i in np.argsort(-np.bincount(code), kind="stable").tolist()
    ]
    pairs = [part["paired"] for part in parts if part["paired"] and part["paired"]["se"] is not None]
    errors = float(ndtri(1 - 0.05 / 2 / max(1, len(pairs))))
    for pair in pairs:
        low, high = (pair["ndcg@10"] + side * errors * pair["se"] for side in (-1, 1))
        pair |= {"interval": [low, high], "shown": "better" if low > 0 else "worse" if high < 0 else None}
    return parts


def _spelled(value: int | float, strings: Mapping[int, str]) -> str:
    """Return a field's value: a category by its hash, where 0 is missing, or a number."""
    if isinstance(value, float):
        return MISSING if np.isnan(value) else f"{value:g}"
    return strings.get(value, vocabulary_entry(value)) if value else MISSING


def _parts(data: Dataset, surface: Surface, encoder: Encoder) -> Iterator[tuple[str, str, Bools]]:
    """Yield for each part what divides the rows, the value, and a mask; large categories first."""
    yield "viewer", "cold (no exposure before)", data.viewer_seen == 0
    yield "viewer", "seen before", data.viewer_seen != 0
    yield "candidate", "new (never shown before)", data.candidate_seen == 0
    yield "candidate", "shown before", data.candidate_seen != 0
    for k, name in enumerate(data.columns.single):
        kind = surface.features[name]
        values, code = np.unique(data.matrix.category[:, k], return_inverse=True)
        # Rows without a category count as one more value.
        is_sliced = isinstance(kind, Category) and kind.field.owner in ("viewer", "context")
        if is_sliced and 2 <= len(values) <= MAX_VALUES + 1:
            entries = encoder.entry_by_hash.get(name, {})
            for i in np.argsort(-np.bincount(code), kind="stable").tolist():
                yield name, _spelled(values[i].item(), entries), code == i
    for k, name in enumerate(data.columns.numeric):
        kind, age_s = surface.features[name], data.matrix.numeric[:, k]
        # If no candidate is young, age divides nothing.
        if isinstance(kind, Age) and kind.field.owner == "candidate" and (age_s < AGE_ENDS_S[-1]).any():
            part = np.where(np.isnan(age_s), len(AGES), np.digitize(age_s, AGE_ENDS_S))
            yield from ((name, value, part == i) for i, value in enumerate((*AGES, MISSING)))
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
