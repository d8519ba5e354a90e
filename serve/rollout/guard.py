"""Rollout guard: decide whether and why a version on trial is rolled back, without I/O.

The guard compares pairs: rows that the new version scored for an answer, and that the *incumbent*,
the version that it replaces, scored again a moment later. Neither the traffic mix, nor the time of
day, nor the fixed cost of a batch can therefore look like a fault of the version. To compare two
samples of traffic would need tens of times as many rows, because the rows of one request and of one
viewer are correlated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from serve.config.settings import Limits
from serve.features.slots import F32
from serve.rollout.score_comparison import ScoreSums

# Observations are forgotten after one to two periods.
PERIOD_S = 150.0
# Distributions are compared from this many rows on. Fewer rows come from few requests, which may be
# alike.
MIN_ROWS = 1_000
# Times are compared from this many pairs on.
MIN_PAIRS = 20
MIN_CALLS_FAILED = 3
MIN_NON_FINITE = 10
# Largest share of non-finite scores. A healthy version has none, whatever the features hold.
MAX_NON_FINITE = 0.01
# A slowdown of a batch by less than this is ignored, because no user notices it.
MIN_EXTRA_MS = 0.5
# The PSI may exceed its limit by a noise of NOISE / rows. Two equal versions have a larger PSI in
# one of a thousand comparisons (`serve.rollout.score_comparison.psi`).
NOISE = 56.0

# Reasons for a rollback: non-finite scores, exceptions, slowness, shifted scores, refused artifact.
Kind = Literal["non_finite", "failed", "slow", "shifted", "refused"]


class Verdict(NamedTuple):
    """Reason for rolling a version back."""

    kind: Kind
    reason: str


class Trial:
    """Trial of one version against its incumbent, to which a rollback would return."""

    def __init__(self, version: str, incumbent: str, limits: Limits, now_s: float) -> None:
        self.version = version
        self.incumbent = incumbent
        self.verdict: Verdict | None = None
        self.limits = limits
        # Sums over the last period and the one before.
        self._tallies = deque([ScoreSums()], maxlen=2)
        self._since_s = now_s
        # (new, incumbent) times of the last pairs, in ms.
        self._times: deque[tuple[float, float]] = deque(maxlen=64)

    def scored(self, shares: F32, now_s: float) -> None:
        """Record the predictions `[R, O]` of a batch; takes about 3 µs."""
        tally = self._now(now_s)
        tally["calls"] += 1
        tally["scores"] += len(shares)
        num_finite = int(np.count_nonzero(np.isfinite(shares).all(axis=1)))
        if num_finite < len(shares):
            tally["non_finite"] += len(shares) - num_finite
            rows, bad = self._total("scores"), self._total("non_finite")
            if bad >= MIN_NON_FINITE and bad > MAX_NON_FINITE * rows:
                self._decide("non_finite", f"{bad} of {rows} scores are not finite")

    def failed(self, error: Exception, now_s: float) -> None:
        """Record a batch that failed because of the version itself."""
        tally = self._now(now_s)
        tally["calls"] += 1
        tally["failed"] += 1
        calls, failed = self._total("calls"), self._total("failed")
        if failed >= MIN_CALLS_FAILED and failed > self.limits.max_failed * calls:
            self._decide("failed", f"{failed} of {calls} calls failed, the last with {error}")

    def compared(self, measures: Mapping[str, float], now_s: float) -> None:
        """Record the measures of a batch that the incumbent scored too."""
        self._now(now_s).add(measures)
        self._times.append((measures["new_ms"], measures["old_ms"]))
        self._judge_shift()
        self._judge_time()

    def _judge_shift(self) -> None:
        num_rows = self._total("rows")
        if num_rows < MIN_ROWS:
            return
        both = ScoreSums()
        for tally in self._tallies:
            both.add(tally)
        outcome, found = both.largest_psi()
        if found > self.limits.max_psi + NOISE / num_rows:
            what = f"predictions of {outcome}" if outcome else "scores"
            self._decide(
                "shifted",
                f"its {what} of {num_rows} rows are shifted from those of {self.incumbent}: PSI is {found:.2f}, "
                f"and at most {self.limits.max_psi:g} is allowed",
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
                f"{ratio:.1f} times as long, and at most {self.limits.max_slowdown:g} times is allowed",
            )

    def _decide(self, kind: Kind, reason: str) -> None:
        if self.verdict is None:
            self.verdict = Verdict(kind, reason)

    def _total(self, name: str) -> int:
        return int(sum(tally[name] for tally in self._tallies))

    def _now(self, now_s: float) -> ScoreSums:
        age_s = now_s - self._since_s
        if age_s >= 2 * PERIOD_S:
            self._tallies.clear()
        if age_s >= PERIOD_S:
            self._tallies.append(ScoreSums())
            self._since_s = now_s
        return self._tallies[-1]
