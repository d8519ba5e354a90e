"""Slices: the measures on parts of the rows, to find where a good model performs badly.

Rows of a slice are ranked among themselves. A part with few rows gets no figures, which would be
noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.kinds.attributes import Category
from serve.features.surface import Surface
from serve.model.encoder import Encoder, entry_hash, vocabulary_entry
from training.data.dataset import Dataset
from training.evaluation.metrics import Contender, ece, mean, row_logloss
from training.evaluation.paired import mean_and_error
from training.evaluation.slates import auc

MIN_ROWS = 500
MIN_OF_EACH_LABEL = 20
# Do not slice by a category of more values: its parts are small, and some would look bad by chance.
MAX_VALUES = 20
# Hours in one band of the day.
HOURS = 3

Mask = NDArray[np.bool_]


def slices(
    data: Dataset, model: Contender, popular: Contender, surface: Surface, encoder: Encoder | None = None
) -> list[dict[str, Any]]:
    """Measure each part of the rows; return one object for each.

    `by` and `value` name the part, then `rows`, `slates`, `positives`; `model` with `auc`,
    `logloss`, `ece`, `ndcg@10`, `popular` with `auc`, `ndcg@10`, and `paired` with `ndcg@10`, `se`.
    The last three are None where the rows are too few. `encoder` names categories.
    """
    parts = _parts(data, surface, encoder)
    return [{"by": by, "value": value} | _measured(model, popular, part) for by, value, part in parts]


def _parts(data: Dataset, surface: Surface, encoder: Encoder | None) -> Iterator[tuple[str, str, Mask]]:
    cold, new = data.viewer_seen == 0, data.candidate_seen == 0
    yield "viewer", "cold (no exposure before)", cold
    yield "viewer", "seen before", ~cold
    yield "candidate", "new (never shown before)", new
    yield "candidate", "shown before", ~new
    for k, name in enumerate(data.columns.single):
        kind = surface.features[name]
        if isinstance(kind, Category) and kind.field.owner in ("viewer", "context"):
            yield from _categories(name, data.matrix.category[:, k], _names(encoder, name))
    band = data.ts_ms // 3_600_000 % 24 // HOURS
    for i in np.unique(band).tolist():
        yield "hour (UTC)", f"{i * HOURS:02d}–{i * HOURS + HOURS:02d}", band == i


def _categories(
    name: str, hashes: NDArray[np.uint64], names: dict[int, str]
) -> Iterator[tuple[str, str, Mask]]:
    """Yield the part of each value, most frequent first."""
    values, code, count = np.unique(hashes, return_inverse=True, return_counts=True)
    # Allow one more value for rows without one.
    if len(values) > MAX_VALUES + 1 or len(values) < 2:
        return
    for i in np.argsort(-count, kind="stable").tolist():
        value = int(values[i])
        yield name, names.get(value, vocabulary_entry(value)) if value else "(missing)", code == i


def _names(encoder: Encoder | None, column: str) -> dict[int, str]:
    single = encoder.single if encoder else ()
    return {entry_hash(entry): entry for c in single if c.name == column for entry in c.vocabulary}


def _measured(model: Contender, popular: Contender, part: Mask) -> dict[str, Any]:
    slates = model.slates
    label = slates.label[part]
    rows, positives = len(label), int(label.sum(dtype=np.float64))
    num_slates = int(np.count_nonzero(np.bincount(slates.code[part])))
    result: dict[str, Any] = {"rows": rows, "slates": num_slates, "positives": positives}
    if rows < MIN_ROWS or min(positives, rows - positives) < MIN_OF_EACH_LABEL or model.chance is None:
        return result | {"model": None, "popular": None, "paired": None}
    chance = model.chance[part]
    rankings = [slates.rank(side.order[part[side.order]]) for side in (model, popular)]
    ours, theirs = (ranking.ndcg(10) for ranking in rankings)
    difference, error = mean_and_error(ours - theirs, slates.cluster[rankings[0].slate])
    return result | {
        "model": {
            "auc": auc(label, model.score[part]),
            "logloss": mean(row_logloss(label, chance)),
            "ece": ece(label, chance),
            "ndcg@10": mean(ours),
        },
        "popular": {"auc": auc(label, popular.score[part]), "ndcg@10": mean(theirs)},
        "paired": {"ndcg@10": difference, "se": error},
    }
