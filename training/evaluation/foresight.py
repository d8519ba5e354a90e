"""Find columns that may know the future, and that a person must say are known before a ranking.

Three signs tell. A feature determines the label all by itself, as a copy of it does (`suspects`). A
column orders far better than the features that do not read it, as the time that a viewer stayed
does. Or it agrees with what happened to its viewer or candidate by chance, as a mean or a sum over
the whole log does (`questions`).

In shapes, N is the number of rows, M of the values of a set, and G of viewers or candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from serve.contract.validation import UNITS_MS
from serve.features.slots import I64, field_refs
from serve.features.surface import Surface
from training.data.dataset import Dataset, sample
from training.evaluation.rivals import LIGHTGBM
from training.evaluation.slates import F64, auc

Sign = Literal["value", "missing"]
# Without leakage, no column reaches this AUC alone.
SUSPECT_AUC = 0.95
# An AUC is only computed from at least this many rows of either label.
MIN_EACH = 20
# At most this many rows show that. With them, the standard error of an AUC is far below 0.01.
SUSPECT_ROWS = 200_000
FOLDS = 5
# A category's rate is smoothed as if this many more rows had the base rate.
PRIOR_ROWS = 1.0
# At most this many rows are used to compare columns, in whole slates.
MOST_ROWS = 50_000
# A column is far better than the rest if its normal deviate of the AUC, squared, is this many times
# as large. This grows like the information in a score: 0.70 has three times that of 0.62.
FAR_BETTER = 2.0
# The rest counts as no worse than this AUC, so that no column below 0.74 is far better. One good
# column may be all that there is.
LEAST_AUC = 0.68
# Two strong columns hide one another, so that this many of the strongest are set aside together.
MOST_TOGETHER = 3
# Numbers are cut into this many cells of equal size.
CELLS = 32
TREES = {"objective": "binary", "num_leaves": 15, "min_data_in_leaf": 50, "lambda_l2": 10.0}
NUM_TREES = 40
# Agreement with chance must exceed none by this many standard errors, which are of a jackknife over
# this many parts of at least this many groups of rows.
SURE, PARTS, ENOUGH_GROUPS = 4.0, 20, 60
# A column that agrees with chance also explains this share of the variance of the groups' means.
# Where one success excludes the next, the halves disagree, and weaker columns would seem to.
EXPLAINED = 0.25


@dataclass(frozen=True)
class Suspect:
    """A feature that alone almost determines the label, by its value or by being missing."""

    feature: str
    sign: Sign
    auc: float
    rows: int

    def __str__(self) -> str:
        subject = "alone" if self.sign == "value" else "merely by being missing or present"
        return (
            f"feature {self.feature!r} {subject} ranks {self.rows} rows with AUC {self.auc:.3f}: is its value known "
            "when the ranking is made? If all fields that it reads are, write known_before = true at them; if not, "
            "remove the feature or, in a table of viewers or candidates, give each value the ts_ms from which it holds"
        )


def suspects(data: Dataset) -> list[Suspect]:
    """Return the features that alone separate the labels, with the worst first.

    A feature is suspect if its AUC is ≥ SUSPECT_AUC or ≤ 1 − SUSPECT_AUC. The score of a number is
    its value. The score of a category is the label's rate at its value in the other folds of
    slates, so that a value that occurs only once carries no information. The score of a set is the
    mean of its values' rates.
    """
    rows = np.arange(0, len(data), -(-len(data) // SUSPECT_ROWS) or 1)
    label = data.label[rows] > 0
    fold = fold_of(data.slate[rows])
    found = []
    for j, name in enumerate(data.columns.numeric):
        values = data.matrix.numeric[rows, j].astype(np.float64)
        found += _judge(name, values, np.isfinite(values), label)
    for name, part in data.columns.category_parts():
        hashes = data.matrix.category[rows, part]
        found += _judge(name, rates(hashes, label, fold), (hashes != 0).any(axis=1), label)
    return sorted(found, key=lambda suspect: -abs(suspect.auc - 0.5))


def fold_of(slate: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold `[N]` of each row's slate, drawn at random: logs have rhythms."""
    slates, number = np.unique(slate, return_inverse=True)
    return np.random.default_rng(0).integers(FOLDS, size=len(slates))[number]


def _judge(name: str, score: F64, present: NDArray[np.bool_], label: NDArray[np.bool_]) -> list[Suspect]:
    """Return the stronger of two signs, the value and being missing, if it is suspect."""
    signs: tuple[tuple[Sign, F64, NDArray[np.bool_]], ...] = (
        ("value", score[present], label[present]),
        ("missing", present.astype(np.float64), label),
    )
    found = [Suspect(name, sign, _auc(values, which), len(which)) for sign, values, which in signs]
    worst = max(found, key=lambda suspect: abs(suspect.auc - 0.5))
    return [worst] if abs(worst.auc - 0.5) >= SUSPECT_AUC - 0.5 else []


def _auc(score: F64, label: NDArray[np.bool_]) -> float:
    """Return the AUC, or ½ if there are too few rows."""
    if min(label.sum(), (~label).sum()) < MIN_EACH:
        return 0.5
    return auc(label, score) or 0.0


def rates(hashes: NDArray[np.uint64], label: NDArray[np.bool_], fold: NDArray[np.int64]) -> F64:
    """Return for each row `[N]` the mean rate of its values `[N, M]` in the other folds."""
    values, code = np.unique(hashes, return_inverse=True)
    code = code.reshape(hashes.shape)
    is_value = hashes != 0
    cell = fold[:, None] * len(values) + code
    num, hits = (
        np.bincount(cell[rows], minlength=FOLDS * len(values)).reshape(FOLDS, -1)
        for rows in (is_value, is_value & label[:, None])
    )
    base = np.bincount(fold, label, FOLDS), np.bincount(fold, minlength=FOLDS)
    # [FOLDS], the label's base rate in the other folds.
    rest = (label.sum() - base[0]) / np.maximum(len(label) - base[1], 1)
    num, hits = num.sum(axis=0) - num, hits.sum(axis=0) - hits
    # [FOLDS, values], each value's rate in the other folds, above the base rate.
    rate = (hits + PRIOR_ROWS * rest[:, None]) / (num + PRIOR_ROWS) - rest[:, None]
    of_row = np.where(is_value, rate[fold[:, None], code], 0.0)
    return np.asarray(of_row.sum(axis=1) / np.maximum(is_value.sum(axis=1), 1), np.float64)


@dataclass(frozen=True)
class Question:
    """A column, such as candidate.dwell, of which a person must say that it is known before."""

    column: str
    why: str

    def __str__(self) -> str:
        owner, name = self.column.split(".")
        return (
            f"{self.column} {self.why}: is it known before a list is shown? If it is, write known_before = true at "
            f"{name} under [{owner}] of the surface; if not, remove it or, in a table of {owner}s, give each value "
            "the ts_ms from which it holds"
        )


def doubted(data: Dataset, surface: Surface) -> list[str]:
    """Return in words what must be answered before a model is published: leaks and questions."""
    known = {path for path, one in surface.paths.items() if one.known_before}
    read = {name: {*map(str, field_refs(kind))} for name, kind in surface.features.items()}
    leaks = [found for found in suspects(data) if not read[found.feature] or read[found.feature] - known]
    told = {path for found in leaks for path in read[found.feature]}
    return [*map(str, leaks), *(str(one) for one in questions(data, surface) if one.column not in told)]


def questions(data: Dataset, surface: Surface) -> list[Question]:
    """Return the columns to ask about, without those that the surface says are known before."""
    if min((data.label > 0).sum(), (data.label == 0).sum()) < MIN_EACH:
        return []
    names = {*data.columns.numeric, *(name for name, _ in data.columns.category_parts())}
    read = {name: set(map(str, field_refs(surface.features[name]))) for name in names}
    readers = {path: {name for name in names if path in read[name]} for path in surface.paths}
    known = {name for path, one in surface.paths.items() if one.known_before for name in readers[path]}
    # The features that show a column as it is.
    plain = {
        path: {name for name in own if read[name] == {path} and not surface.features[name].slots}
        for path, own in readers.items()
        if not surface.paths[path].known_before
    }
    found = [*_far_better(sample(data, MOST_ROWS), plain, readers, known), *_informed_of_chance(data, plain)]
    return list({one.column: one for one in reversed(found)}.values())


def _far_better(
    rows: Dataset, plain: Mapping[str, set[str]], readers: Mapping[str, set[str]], known: set[str]
) -> list[Question]:
    """Return the columns that alone order far better than the features that do not read them.

    What a person has said is known stands aside with them, so that no answer asks a new question.
    """
    label, fold = rows.label > 0, fold_of(rows.slate)
    numbers = dict(zip(rows.columns.numeric, rows.matrix.numeric.T, strict=True))
    scores = {name: rates(_cells(values)[:, None], label, fold) for name, values in numbers.items()}
    for name, part in rows.columns.category_parts():
        numbers[name] = scores[name] = rates(rows.matrix.category[:, part], label, fold)
    # A column of a candidate cannot tell more than which candidate it is, if that is often shown.
    for name, ids in (("its viewer", rows.viewer), ("its candidate", rows.shown)):
        numbers[name] = scores[name] = rates((ids[:, None] + 1).astype(np.uint64), label, fold)
    aucs = {name: auc(label, score) or 0.5 for name, score in scores.items()}
    best = {path: max((aucs[name] for name in own), default=0.0) for path, own in plain.items()}
    aside, found = known, list[Question]()
    strongest = sorted(best, key=lambda path: -best[path])[:MOST_TOGETHER]
    for place, path in enumerate(strongest):
        aside = aside | readers[path]
        rest = {name: numbers[name] for name in numbers.keys() - aside}
        least = max([LEAST_AUC, *(aucs[name] for name in rest)])
        # The rest together is rarely worse than the best of it, which costs no training.
        if rest and _is_far(best[path], least):
            least = max(LEAST_AUC, _together(rest, label, fold))
        if _is_far(best[path], least):
            others = f"all features that read no such column (AUC of at most {least:.3f})"
            than = f"orders far better than {others}"
            found = [Question(one, f"{than}, with {best[one]:.3f}") for one in strongest[: place + 1]]
    return found


def _is_far(found: float, rest: float) -> bool:
    """Return whether an AUC is far better than that of the rest, which is above 0.5."""
    return found > 0.5 and bool(ndtri(found) ** 2 > FAR_BETTER * ndtri(rest) ** 2)


def _cells(values: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Return the number of the cell `[N]` of each value, from 1; 0 where it is missing."""
    given, cells = np.isfinite(values), np.zeros(len(values), np.uint64)
    cells[given] = 1 + rankdata(values[given]) * CELLS // (given.sum() + 1)
    return cells


def _together(features: Mapping[str, NDArray[np.floating]], label: NDArray[np.bool_], fold: I64) -> float:
    """Return the AUC of trees that know all these features, each fold by the others."""
    import lightgbm as trees

    inputs, score = np.stack([features[name] for name in sorted(features)], axis=1), np.zeros(len(label))
    for one in range(FOLDS):
        seen = fold != one
        data = trees.Dataset(inputs[seen], label[seen].astype(np.float32), params=LIGHTGBM)
        score[~seen] = trees.train(LIGHTGBM | TREES, data, NUM_TREES).predict(inputs[~seen], num_threads=1)
    return auc(label, score) or 0.5


def _informed_of_chance(data: Dataset, plain: Mapping[str, set[str]]) -> Iterator[Question]:
    """Yield the numbers that agree more with what happened than any foreknowledge could.

    The rows of a viewer or candidate, in the whole log or on a day, are a group with a chance of
    its own. Two halves of its slates share that chance and nothing else, so that their means `[G]`
    covary by its variance. By the inequality of Cauchy and Schwarz, no number known before explains
    more of the means than that.
    """
    numbers = dict(zip(data.columns.numeric, data.matrix.numeric.T, strict=True))
    half = np.random.default_rng(0).integers(2, size=int(data.slate.max()) + 1)[data.slate]
    day = (data.ts_ms - data.ts_ms.min()) // UNITS_MS["d"]
    columns = [(path, name) for path, own in plain.items() for name in own & numbers.keys()]
    for owner, ids in (("viewer", data.viewer), ("candidate", data.shown)):
        for when, period in (("in this log", 0 * day), ("on a day", day)):
            key = ids * (day.max() + 1) + period
            _, first, group = np.unique(key, return_index=True, return_inverse=True)
            cell = group + half * len(first)
            num, sums = (np.bincount(cell, by, 2 * len(first)).reshape(2, -1) for by in (None, data.label))
            whole = (num > 0).all(axis=0) & (ids[first] >= 0)
            why = f"agrees better than foresight could with what happened to its {owner} {when}"
            for path, name in (column for column in columns if column[0].startswith(owner)):
                # A number that follows what happened only later is judged by its first value.
                values = numbers[name][first].astype(np.float64)
                kept = whole & np.isfinite(values)
                if kept.sum() >= ENOUGH_GROUPS:
                    about = num[:, kept], sums[:, kept], ids[first[kept]]
                    # Ranks find what grows along a curve, and values what is nearly known anyway.
                    # A count over the whole log tells of sums, for which each half weighs the same.
                    of_sums = np.full(about[0].shape, 0.5), *about[1:]
                    each = product((values[kept], rankdata(values[kept])), (about, of_sums))
                    if any(_agrees(x, *parts) for x, parts in each):
                        yield Question(path, why)


def _agrees(values: F64, num: NDArray[Any], sums: NDArray[Any], ids: I64) -> bool:
    """Return whether values `[G]` explain more of the means than halves `[2, G]` share."""
    weight, x = num.sum(axis=0), (values - values.mean()) / (values.std() or 1.0)
    mean, (one, other) = sums.sum(axis=0) / weight, sums / num
    terms = weight * [np.ones(len(x)), x, mean, one, other, x * x, mean * mean, x * mean, one * other]
    parts = np.stack([np.bincount(ids % PARTS, term, PARTS) for term in terms], axis=1)
    # The whole, then all without each part.
    of = np.vstack([parts.sum(axis=0), parts.sum(axis=0) - parts])
    of = of / of[:, :1]
    spread, variance = of[:, 5] - of[:, 1] ** 2, of[0, 6] - of[0, 2] ** 2
    if spread.min() <= 0:
        return False
    explained = (of[:, 7] - of[:, 1] * of[:, 2]) ** 2 / spread
    excess = explained - (of[:, 8] - of[:, 3] * of[:, 4])
    error = np.sqrt((PARTS - 1) * excess[1:].var())
    return bool(explained[0] > EXPLAINED * variance and excess[0] > SURE * error)
