"""Pairs: the same rows scored by two versions, and how far apart the two are.

R rows, B bins. Scores are probabilities, so the bins are even in their log-odds: a surface of rare joins has all its
scores near 0, and even bins of the probability would see one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

EDGES: F32 = (1 / (1 + np.exp(-np.arange(-8.0, 8.01, 0.25)))).astype(np.float32)
NUM_BINS = len(EDGES) + 1
NUM_GROUPS = 10  # of bins, each with about a tenth of the old version's scores: the usual deciles
TOP = 10


class Pair(NamedTuple):
    """One batch scored by the version that is asked about (`new`) and by the one that it is held against (`old`)."""

    new: F32  # [R]
    old: F32  # [R]
    new_ms: float
    old_ms: float
    request_of_row: I64  # [R]


def histogram(scores: F32) -> I64:
    """`[B]` counts; a score that is not finite is in none."""
    scores = scores[np.isfinite(scores)]
    counts: I64 = np.bincount(np.searchsorted(EDGES, scores, side="right"), minlength=NUM_BINS)
    return counts


def psi(old: I64, new: I64) -> float:
    """The population stability index of two histograms `[B]`: Σ (p − q)·ln(p / q) over ten groups of bins.

    0 where they agree; 0.1 is usually called a small shift, 0.25 a large one. With half a count more in each group,
    so that an empty one is finite. Of two independent samples of n rows from one distribution it is about
    2/n · χ² with 9 degrees of freedom: 18/n on average, 56/n in one of a thousand.
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


def top_kept(pair: Pair) -> tuple[float, int]:
    """How much of the old top ten is in the new one, summed over requests of more than ten candidates; how many."""
    _, request = np.unique(pair.request_of_row, return_inverse=True)
    length = np.bincount(request)
    is_long = length > TOP
    if not is_long.any():
        return 0.0, 0
    both = _is_top(pair.old, request, length) & _is_top(pair.new, request, length)
    kept = np.bincount(request, both) / TOP
    return float(kept[is_long].sum()), int(is_long.sum())


def _is_top(scores: F32, request: I64, length: I64) -> NDArray[np.bool_]:
    """`[R]` whether a row is among the first ten of its request."""
    order = np.lexsort((-scores, request))  # what is not finite comes last
    begins = np.concatenate([[0], np.cumsum(length)[:-1]])
    is_top = np.empty(len(scores), np.bool_)
    is_top[order] = np.arange(len(scores)) - begins[request[order]] < TOP
    return is_top


@dataclass
class Sums:
    """What pairs come to, so that the sums of replicas and of times can be added."""

    rows: float = 0.0
    new_score: float = 0.0
    old_score: float = 0.0
    new_ms: float = 0.0
    old_ms: float = 0.0
    requests: float = 0.0  # of more than ten candidates
    top_kept: float = 0.0
    new_bins: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    old_bins: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))

    def add(self, pair: Pair) -> None:
        """Count a pair; rows that either did not score are left out."""
        good = np.isfinite(pair.new) & np.isfinite(pair.old)
        kept, requests = top_kept(pair)
        self.rows += float(good.sum())
        self.new_score += float(pair.new[good].sum(dtype=np.float64))
        self.old_score += float(pair.old[good].sum(dtype=np.float64))
        self.new_ms += pair.new_ms
        self.old_ms += pair.old_ms
        self.requests += requests
        self.top_kept += kept
        self.new_bins = self.new_bins + histogram(pair.new[good])
        self.old_bins = self.old_bins + histogram(pair.old[good])

    def measures(self) -> dict[str, float]:
        """Flat, by the names of the metric's label `measure`."""
        flat = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        for side, bins in (("new_bin", self.new_bins), ("old_bin", self.old_bins)):
            flat |= {f"{side}_{b:02d}": float(bins[b]) for b in np.flatnonzero(bins).tolist()}
        return flat

    @classmethod
    def of(cls, measures: dict[str, float]) -> Sums:
        """Back from `measures`, of all replicas added up; a name that is unknown is left out."""
        found = cls()
        for name, value in measures.items():
            side, _, place = name.rpartition("_")
            if side in ("new_bin", "old_bin") and place.isdigit() and int(place) < NUM_BINS:
                getattr(found, f"{side}s")[int(place)] = int(value)
            elif isinstance(getattr(found, name, None), float):
                setattr(found, name, float(value))
        return found

    def report(self) -> dict[str, float | int | None]:
        """The shift of the mean score, the distribution, the order and the time; None where nothing tells."""
        return {
            "rows": int(self.rows),
            "mean_score": _over(self.new_score, self.rows),
            "mean_shift": _over(self.new_score - self.old_score, self.rows),
            "psi": psi(self.old_bins, self.new_bins) if self.rows else None,
            "top10_kept": _over(self.top_kept, self.requests),
            "latency_ratio": _over(self.new_ms, self.old_ms),
        }


def _over(a: float, b: float) -> float | None:
    return a / b if b and math.isfinite(a / b) else None
