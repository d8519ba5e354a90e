"""Warnings about a log's outcomes, slates and missing values, before somebody trains for hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BOTH_LABELS = "training needs rows of both labels"
# With fewer positives than this, a model usually loses to the popular order.
ENOUGH_POSITIVES = 2_000
# An outcome on a smaller share of the rows is more likely a mistake than what somebody wants.
RARE = 0.001
# Warn of a column from this share of missing values on.
MUCH_MISSING = 0.3


def doubts(exposures: pa.Table, positives: Mapping[str, int], missing: Mapping[str, float]) -> Iterator[str]:
    """Yield one warning, a sentence, for each thing about the log that looks wrong.

    `positives` says for each kind of event how many shown candidates it followed. `missing` is the
    share of missing values of each column.
    """
    sizes = pc.fill_null(pc.list_value_length(exposures["candidates"]), 0).to_numpy()
    num_shown = int(sizes.sum())
    for kind, num in positives.items():
        what = f"warning: {num:,} of {num_shown:,} shown candidates ({num / num_shown:.2%}) have the event {kind!r}"
        if num >= num_shown:
            yield f"{what}: fit and search refuse it as an outcome; {BOTH_LABELS}"
        elif num < RARE * num_shown:
            yield f"{what}: check what it means before you use it as an outcome"
        if num < ENOUGH_POSITIVES:
            yield f"{what}: with fewer than some thousand positives a model loses to the popular order"
    if (share := float(np.mean(sizes < 2))) >= 0.5:
        why = "no order can be learned from them; if more were on screen, name --slate or --window of `import csv`"
        yield f"warning: {share:.0%} of the slates have one candidate: {why}"
    viewers = {"viewer of the slates": exposures["viewer"].null_count / len(exposures)}
    for name, share in {**viewers, **missing}.items():
        if MUCH_MISSING <= share < 1:
            yield f"warning: {share:.0%} of {name} is missing; check its export"
