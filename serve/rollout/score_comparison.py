"""Score comparison: the same rows scored by two versions, and the shift between the scores.

Bins are evenly spaced in log-odds. If joins are rare, all scores are near 0, and bins that are
evenly spaced in probability would put them all into one bin.

Shapes: R rows, B bins.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from serve.features.slots import F32, I64

EDGES: F32 = (1 / (1 + np.exp(-np.arange(-8.0, 8.01, 0.25)))).astype(np.float32)
NUM_BINS = len(EDGES) + 1
# The bins are grouped into deciles of the old version's scores, as is usual for the PSI.
NUM_GROUPS = 10
TOP = 10
# The name of a bin's measure. If there are several outcomes, it ends with the outcome.
BIN = re.compile(r"(?:new|old)_bin_[0-9]{2}(|_.+)")
# If two scores differ relatively by no more than this, their order is noise. A calibration that
# shifted 60,000 rows swapped only rows whose scores differ by at most 1.3 units of float32's
# precision.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


class ScorePair(NamedTuple):
    """One batch scored by two versions: `new` is examined, `old` is the reference. Scores `[R]`.

    `shares` are the (new, old) shares `[R]` of each outcome that both versions predict. Without
    them there is one outcome, whose shares are the scores.
    """

    new: F32
    old: F32
    new_ms: float
    old_ms: float
    request_of_row: I64
    shares: Mapping[str, tuple[F32, F32]] = {}

    def measures(self) -> dict[str, float]:
        """Return sums over rows with finite scores, by the values of the metric label `measure`.

        `requests` counts the requests with more than ten candidates. `new_bin_07` is a bin of the
        histogram of shares; if there are several outcomes, `new_bin_07_hide` is that of `hide`.
        """
        good = np.isfinite(self.new) & np.isfinite(self.old)
        kept, num_requests = top_kept(self)
        found = {"rows": int(good.sum()), "requests": num_requests, "top_kept": kept}
        for side, scores, took_ms in (("new", self.new, self.new_ms), ("old", self.old, self.old_ms)):
            found[f"{side}_score"] = float(scores[good].sum(dtype=np.float64))
            found[f"{side}_ms"] = took_ms
        for outcome, both in (self.shares or {"": (self.new, self.old)}).items():
            end = f"_{outcome}" if len(self.shares) > 1 else ""
            for side, shares in zip(("new", "old"), both, strict=True):
                bins = histogram(shares[good])
                found |= {f"{side}_bin_{b:02d}{end}": int(bins[b]) for b in np.flatnonzero(bins).tolist()}
        return found


def histogram(scores: F32) -> I64:
    """Return counts `[B]`; non-finite scores are not counted."""
    scores = scores[np.isfinite(scores)]
    return np.bincount(np.searchsorted(EDGES, scores, side="right"), minlength=NUM_BINS)


def psi(old: I64, new: I64) -> float:
    """Return the population stability index of two histograms `[B]`.

    It is Σ (p − q)·ln(p / q) over ten groups of bins. 0 means equal; 0.1 is usually called a small
    shift, and 0.25 a large one. Half a count is added to each group, so that an empty group stays
    finite. For two independent samples of n rows from one distribution, it is about 2/n · χ² with 9
    degrees of freedom: 18/n on average, and above 56/n in one of a thousand cases.
    """
    num_old, num_new = int(old.sum()), int(new.sum())
    if not num_old or not num_new:
        return 0.0
    below = np.concatenate([[0], np.cumsum(old)[:-1]]) / num_old
    group = np.minimum((below * NUM_GROUPS).astype(np.int64), NUM_GROUPS - 1)
    _, group = np.unique(group, return_inverse=True)
    p = np.bincount(group, old) + 0.5
    q = np.bincount(group, new) + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def cell_counts(cells: Mapping[str, Any], values: F32) -> I64:
    """Count missing values, the common value, and the values in each cell.

    An artifact keeps the `cells` of its training rows (`training.evaluation.drift`).
    """
    edges = np.array(cells["deciles"], np.float32)
    cell = np.searchsorted(edges, values, "left") + 2
    if cells["common"] is not None:
        cell[values == np.float32(cells["common"])] = 1
    cell[np.isnan(values)] = 0
    return np.bincount(cell, minlength=len(edges) + 3)


def top_kept(pair: ScorePair) -> tuple[float, int]:
    """Return the share of the old top ten that stays, summed over requests of more than ten rows.

    A row stays if its new score is among the first ten of its request. A shift of all scores keeps
    their order, but float32 can make two scores that are close equal, or swap them. A row therefore
    also stays if, up to rounding, its old score equals the old eleventh and its new score the new
    tenth. The second value is the number of those requests.
    """
    _, request = np.unique(pair.request_of_row, return_inverse=True)
    length = np.bincount(request)
    is_long = length > TOP
    if not is_long.any():
        return 0.0, 0
    old, new = (_places(scores, request, length) for scores in (pair.old, pair.new))
    old_eleventh, new_tenth = _at(TOP, old, pair.old, request), _at(TOP - 1, new, pair.new, request)
    # A utility may be negative, so take the absolute value.
    is_tie = pair.old <= old_eleventh + ROUNDING * np.abs(old_eleventh)
    is_tie &= pair.new >= new_tenth - ROUNDING * np.abs(new_tenth)
    kept = np.bincount(request, (old < TOP) & ((new < TOP) | is_tie)) / TOP
    return float(kept[is_long].sum()), int(is_long.sum())


def _places(scores: F32, request: I64, length: I64) -> I64:
    """Return the place of each row `[R]` in the order of its request, from 0."""
    # Non-finite scores sort last.
    order = np.lexsort((-scores, request))
    begins = np.concatenate([[0], np.cumsum(length)[:-1]])
    places = np.empty(len(scores), np.int64)
    places[order] = np.arange(len(scores)) - begins[request[order]]
    return places


def _at(place: int, places: I64, scores: F32, request: I64) -> F32:
    """Return the score `[R]` at a place of each row's request; NaN if it has fewer rows."""
    found = np.full(int(request.max()) + 1, np.nan, np.float32)
    found[request[places == place]] = scores[places == place]
    return found[request]


class ScoreSums(defaultdict[str, float]):
    """Sums of the measures of pairs, over batches, periods and replicas."""

    def __init__(self) -> None:
        super().__init__(float)

    def add(self, measures: Mapping[str, float]) -> None:
        """Add the measures of a pair, or other sums."""
        for name, value in measures.items():
            self[name] += value

    def largest_psi(self) -> tuple[str, float]:
        """Return the outcome whose distributions differ most ("" if there is one), and its PSI."""
        outcomes = {match[1] for name in self if (match := BIN.fullmatch(name))} or {""}
        shifts = {name: psi(self._bins("old", name), self._bins("new", name)) for name in sorted(outcomes)}
        outcome = max(shifts, key=lambda name: shifts[name])
        return outcome.removeprefix("_"), shifts[outcome]

    def report(self) -> dict[str, float | int | None]:
        """Return the shift of mean, distribution, order and time; None where data is missing."""
        return {
            "rows": int(self["rows"]),
            "mean_score": _over(self["new_score"], self["rows"]),
            "mean_shift": _over(self["new_score"] - self["old_score"], self["rows"]),
            "psi": self.largest_psi()[1] if self["rows"] else None,
            "top10_kept": _over(self["top_kept"], self["requests"]),
            "latency_ratio": _over(self["new_ms"], self["old_ms"]),
        }

    def _bins(self, side: str, end: str) -> I64:
        return np.array([self.get(f"{side}_bin_{b:02d}{end}", 0) for b in range(NUM_BINS)], np.int64)


def _over(a: float, b: float) -> float | None:
    return a / b if b and math.isfinite(a / b) else None
