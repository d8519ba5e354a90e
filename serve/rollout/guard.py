"""The guard: whether a version that is on trial is to come back, and why. No I/O, and the time is handed in.

It goes by pairs: rows that the version scored for an answer and that the one it replaces scored again a moment later.
So neither the mix of traffic, nor the hour, nor what a batch costs however small it is can pass for a fault of the
version; a comparison of two samples of traffic would need tens of times the rows, for the rows of one request and of
one viewer are alike.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from serve.config.settings import Limits
from serve.rollout.score_comparison import F32, I64, NUM_BINS, Pair, histogram, psi

PERIOD_S = 150.0  # what is older than one to two of these is forgotten
MIN_ROWS = 1_000  # before the distributions are compared: the few requests that fewer are of may be alike
MIN_PAIRS = 20  # before the times are
MIN_CALLS_FAILED = 3
MIN_NON_FINITE = 10
MAX_NON_FINITE = 0.01  # of its rows; a version that is well has none, whatever the features hold
MIN_EXTRA_MS = 0.5  # a batch: less is felt by nobody
NOISE = (
    56.0  # of the PSI, times rows: what two equal versions exceed in one of a thousand looks (`pairs.psi`)
)

# why a version comes back: its scores are not finite, it raises, is slow, scores otherwise, or cannot be loaded
Kind = Literal["non_finite", "failed", "slow", "shifted", "refused"]


class Verdict(NamedTuple):
    """Why a version is to come back."""

    kind: Kind
    reason: str


@dataclass
class _Tally:
    """What was seen in one period."""

    since_s: float
    num_rows: int = 0
    num_non_finite: int = 0
    num_calls: int = 0
    num_failed: int = 0
    new: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    old: I64 = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))


class Trial:
    """One version, held against the one to which it would give way."""

    def __init__(self, version: str, incumbent: str, limits: Limits, now_s: float) -> None:
        self.version = version
        self.incumbent = incumbent
        self.verdict: Verdict | None = None
        self.limits = limits
        self._tallies = deque([_Tally(now_s)], maxlen=2)
        self._times: deque[tuple[float, float]] = deque(maxlen=64)  # of a pair, new and old, ms

    def scored(self, scores: F32, now_s: float) -> None:
        """It scored a batch for an answer; about 3 µs."""
        tally = self._now(now_s)
        tally.num_calls += 1
        tally.num_rows += len(scores)
        num_finite = int(np.count_nonzero(np.isfinite(scores)))
        if num_finite < len(scores):
            tally.num_non_finite += len(scores) - num_finite
            rows, bad = self._total("num_rows"), self._total("num_non_finite")
            if bad >= MIN_NON_FINITE and bad > MAX_NON_FINITE * rows:
                self._say("non_finite", f"{bad} of {rows} scores are not finite")

    def failed(self, error: Exception, now_s: float) -> None:
        """It could not score a batch, and that is its own fault."""
        tally = self._now(now_s)
        tally.num_calls += 1
        tally.num_failed += 1
        calls, failed = self._total("num_calls"), self._total("num_failed")
        if failed >= MIN_CALLS_FAILED and failed > self.limits.max_failed * calls:
            self._say("failed", f"{failed} of {calls} calls failed, the last with {error}")

    def compared(self, pair: Pair, now_s: float) -> None:
        """The incumbent scored a batch of its rows too."""
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
            self._say(
                "shifted",
                f"its scores of {num_rows} rows are shifted from those of {self.incumbent}: a PSI of {found:.2f}, "
                f"and {self.limits.max_psi:g} is allowed",
            )

    def _judge_time(self) -> None:
        if len(self._times) < MIN_PAIRS:
            return
        new_ms, old_ms = (median(side) for side in zip(*self._times, strict=True))
        ratio = median(new / max(old, 1e-6) for new, old in self._times)
        if ratio > self.limits.max_slowdown and new_ms - old_ms > MIN_EXTRA_MS:
            self._say(
                "slow",
                f"it takes {new_ms:.1f} ms for a batch of which {self.incumbent} takes {old_ms:.1f}: "
                f"{ratio:.1f} times, and {self.limits.max_slowdown:g} are allowed",
            )

    def _say(self, kind: Kind, reason: str) -> None:
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
