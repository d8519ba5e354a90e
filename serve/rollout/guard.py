"""Rollout guard: decide if and why a version on trial is rolled back. No I/O; time is injected.

The guard compares pairs: rows that the new version scored for an answer and that the incumbent
scored again a moment later. Thus neither the traffic mix, nor the time of day, nor the fixed cost
of a batch can look like a fault of the version. Comparing two samples of traffic would need tens of
times as many rows, because the rows of one request and of one viewer are correlated.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from serve.config.settings import Limits
from serve.rollout.score_comparison import F32, I64, NUM_BINS, ScorePair, histogram, psi

# Forget observations after one to two periods.
PERIOD_S = 150.0
# Compare distributions from 1,000 rows on: fewer rows come from few requests, which may be alike.
MIN_ROWS = 1_000
# Compare times from 20 pairs on.
MIN_PAIRS = 20
MIN_CALLS_FAILED = 3
MIN_NON_FINITE = 10
# Largest share of non-finite scores. A healthy version has none, whatever the features hold.
MAX_NON_FINITE = 0.01
# Ignore a slowdown below 0.5 ms a batch: no user notices it.
MIN_EXTRA_MS = 0.5
# Allow the PSI a noise of NOISE / rows: two equal versions exceed it in one of a thousand
# comparisons (`serve.rollout.score_comparison.psi`).
NOISE = 56.0

# Reasons for a rollback: non-finite scores, exceptions, slowness, shifted scores, refused artifact.
Kind = Literal["non_finite", "failed", "slow", "shifted", "refused"]


class Verdict(NamedTuple):
    """Reason for rolling a version back."""

    kind: Kind
    reason: str


@dataclass
class _Tally:
    """Observations of one period."""

    since_s: float
    num_rows: int = 0
    num_non_finite: int = 0
    num_calls: int = 0
    num_failed: int = 0
    new: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    old: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))


class Trial:
    """Trial of one version against the incumbent that it would be rolled back to."""

    def __init__(self, version: str, incumbent: str, limits: Limits, now_s: float) -> None:
        self.version = version
        self.incumbent = incumbent
        self.verdict: Verdict | None = None
        self.limits = limits
        self._tallies = deque([_Tally(now_s)], maxlen=2)
        # (new, incumbent) times of the last pairs, in ms.
        self._times: deque[tuple[float, float]] = deque(maxlen=64)

    def scored(self, scores: F32, now_s: float) -> None:
        """Record the scores of a batch; takes about 3 µs."""
        tally = self._now(now_s)
        tally.num_calls += 1
        tally.num_rows += len(scores)
        num_finite = int(np.count_nonzero(np.isfinite(scores)))
        if num_finite < len(scores):
            tally.num_non_finite += len(scores) - num_finite
            rows, bad = self._total("num_rows"), self._total("num_non_finite")
            if bad >= MIN_NON_FINITE and bad > MAX_NON_FINITE * rows:
                self._decide("non_finite", f"{bad} of {rows} scores are not finite")

    def failed(self, error: Exception, now_s: float) -> None:
        """Record a batch that failed because of the version itself."""
        tally = self._now(now_s)
        tally.num_calls += 1
        tally.num_failed += 1
        calls, failed = self._total("num_calls"), self._total("num_failed")
        if failed >= MIN_CALLS_FAILED and failed > self.limits.max_failed * calls:
            self._decide("failed", f"{failed} of {calls} calls failed, the last with {error}")

    def compared(self, pair: ScorePair, now_s: float) -> None:
        """Record a batch that the incumbent scored too."""
        tally = self._now(now_s)
        good = np.isfinite(pair.new) & np.isfinite(pair.old)
        tally.new += histogram(pair.new[good])
        tally.old += histogram(pair.old[good])
        self._times.append((pair.new_ms, pair.old_ms))
        self._judge_shift()
        self._judge_time()

    def _judge_shift(self) -> None:
        new, old = sum(t.new for t in self._tallies), sum(t.old for t in self._tallies)
        num_rows = int(old.sum())  # type: ignore[union-attr]
        if num_rows < MIN_ROWS:
            return
        found = psi(old, new)  # type: ignore[arg-type]
        if found > self.limits.max_psi + NOISE / num_rows:
            self._decide(
                "shifted",
                f"its scores of {num_rows} rows are shifted from those of {self.incumbent}: PSI {found:.2f}, "
                f"allowed {self.limits.max_psi:g}",
            )

    def _judge_time(self) -> None:
        if len(self._times) < MIN_PAIRS:
            return
        new_ms, old_ms = (median(side) for side in zip(*self._times, strict=True))
        ratio = median(new / max(old, 1e-6) for new, old in self._times)
        if ratio > self.limits.max_slowdown and new_ms - old_ms > MIN_EXTRA_MS:
            self._decide(
                "slow",
                f"a batch takes {new_ms:.1f} ms, and {old_ms:.1f} ms with {self.incumbent}: "
                f"{ratio:.1f} times, allowed {self.limits.max_slowdown:g}",
            )

    def _decide(self, kind: Kind, reason: str) -> None:
        if self.verdict is None:
            self.verdict = Verdict(kind, reason)

    def _total(self, name: str) -> int:
        return int(sum(getattr(tally, name) for tally in self._tallies))

    def _now(self, now_s: float) -> _Tally:
        age_s = now_s - self._tallies[-1].since_s
        if age_s >= 2 * PERIOD_S:
            self._tallies.clear()
        if age_s >= PERIOD_S:
            self._tallies.append(_Tally(now_s))
        return self._tallies[-1]
