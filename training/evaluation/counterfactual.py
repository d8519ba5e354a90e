"""Value of another ranking, estimated from exposures with a randomised order.

The value of a ranking is E Σ θ(k')·a over its candidates: a candidate at position k' is examined
with probability θ(k') and then earns its attraction `a`. The position-based estimator of Li,
Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen (2018, "Offline evaluation of ranking
policies with click models") weights the event of a candidate with the ratio of its new to its
expected examination, w = θ(k') / Σ π(k)θ(k), where π is the distribution of its position over
draws. From the means over exposures of the five sums over candidates in `Sums`:

    SNIPS = A·D / B      DR = Q + A − R

SNIPS normalises by the actual examination (Swaminathan and Joachims 2015, "The self-normalized
estimator for counterfactual learning"). DR adds the reward beyond a model of `a`; the draw
averages out the errors of the model (Oosterhuis 2023, "Doubly robust estimation for correcting
position bias in click feedback for unbiased learning to rank"). A decision between actions is
the case of one position: θ = 1, w = π'(a) / π(a).
Errors are linearised, including that of θ, with viewers as clusters. Letters: N exposures,
C candidates, P parameters of θ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from serve.contract.errors import TabrankError
from training.evaluation.metrics import Z95, mean_and_error
from training.examination.curve import Curve, fit_curve, prior
from training.examination.placements import F64, I64, Bins, Counts

# Clip weights at this value, which bounds the variance; the report holds the share clipped.
MAX_WEIGHT = 50.0
# With fewer effective events, the error itself is not reliable.
MIN_EFFECTIVE = 50.0
# With fewer events the curve of examination is too uncertain.
MIN_EVENTS = 100
# Process this many exposures at once, to bound the memory.
_AT_ONCE = 1_000


@dataclass(frozen=True)
class Drawn:
    """N exposures with a randomised order, candidates in the order shown.

    `weight` `[N, C]` are the log weights of the draw, −inf for candidates that were not drawn and
    for padding. `reward` `[N, C]` is 0 or 1, of padding 0, and `cluster` `[N]` the viewer's number.
    """

    weight: F64
    reward: F64
    cluster: I64

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Estimate:
    """Value per exposure, with the `influence` `[N]` of each exposure on it, of mean 0.

    `shift` is its change if a given curve of examination is off by one standard error.
    """

    value: float
    influence: F64
    shift: float = 0.0

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference of two estimates on the same exposures."""
        return Estimate(self.value - other.value, self.influence - other.influence, self.shift - other.shift)

    def times(self, factor: float) -> Estimate:
        """Return the estimate of so many times the value."""
        return Estimate(factor * self.value, factor * self.influence, factor * self.shift)

    def error(self, cluster: I64) -> float:
        """Return the standard error over clusters `[N]`, infinite for a single one."""
        _, error = mean_and_error(self.influence, cluster)
        return np.inf if error is None else float(np.hypot(error, self.shift))

    def interval(self, cluster: I64) -> tuple[float, float]:
        """Return the 95 % interval over clusters `[N]`."""
        reach = Z95 * self.error(cluster)
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Sums:
    """Five sums of each exposure, `parts` `[5, N]`.

    A = Σ w·reward, B = Σ w·θ(k), D = Σ θ(k'), Q = Σ θ(k')·â, R = Σ w·θ(k)·â. `fixed` `[N]` is the
    reward that no ranking changes. `moved` `[5, N]` is the influence of each exposure on the means
    through θ. `effective` is the effective number of events (Σ w·reward)² / Σ (w·reward)² (Kish
    1965). `clipped` is the share of the weight that was clipped.
    """

    parts: F64
    fixed: F64
    moved: F64
    effective: float
    clipped: float

    def snips(self) -> Estimate:
        """Return the self-normalised estimate."""
        a, b, d, _, _ = self.parts.mean(axis=1)
        return self._estimate(a * d / b, np.array([d / b, -a * d / b**2, a / b, 0.0, 0.0]))

    def doubly_robust(self) -> Estimate:
        """Return the doubly robust estimate, with the model of attraction."""
        a, _, _, q, r = self.parts.mean(axis=1)
        return self._estimate(q + a - r, np.array([1.0, 0.0, 0.0, 1.0, -1.0]))

    def _estimate(self, value: float, slope: F64) -> Estimate:
        own = self.parts - self.parts.mean(axis=1, keepdims=True)
        fixed = float(self.fixed.mean())
        return Estimate(float(value) + fixed, slope @ (own + self.moved) + self.fixed - fixed)


ESTIMATORS: Mapping[str, Callable[[Sums], Estimate]] = {"snips": Sums.snips, "dr": Sums.doubly_robust}


class Counterfactual:
    """Evaluator of rankings on drawn exposures, with θ and the marginals of the draws."""

    def __init__(self, drawn: Drawn, bins: Bins, counts: Counts) -> None:
        """Fit θ; `counts` are the `place_counts` of the exposures' weights.

        Raises:
            TabrankError: there are too few events.
        """
        self.drawn, self.is_drawn = drawn, np.isfinite(drawn.weight)
        self._bin = bins.of[: drawn.weight.shape[1]]
        exposure, place = np.nonzero((drawn.reward > 0) & self.is_drawn)
        if len(place) < MIN_EVENTS:
            raise TabrankError(
                f"{len(place)} events in exposures whose order was drawn, and examination needs at least {MIN_EVENTS}; "
                "collect more, or raise the arm's `explore`"
            )
        known = counts[exposure, place], self._bin[place], exposure
        self.curve: Curve = fit_curve(*known, len(drawn), prior(bins))
        theta, basis = self.curve.theta, self.curve.basis
        columns = np.concatenate([theta[:, None], theta[:, None] * basis], axis=1).astype(np.float32)
        moments = np.empty((*counts.shape[:2], columns.shape[1]), np.float32)
        for begin in range(0, len(counts), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            moments[some] = counts[some].astype(np.float32) @ columns
        num_draws = np.maximum(counts.sum(axis=2, dtype=np.int64), 1)
        # Σ π(k)θ(k), [N, C].
        self.expected: F64 = np.where(self.is_drawn, moments[..., 0] / num_draws, 1.0)
        mean = moments[..., 1:] / np.maximum(moments[..., :1], 1e-30)
        self._mean_basis = np.where(self.is_drawn[..., None], mean, 0.0)

    @property
    def examination(self) -> F64:
        """Return θ of each position `[C]`."""
        return self.curve.theta[self._bin]

    def logged(self, num_places: int) -> Estimate:
        """Return the actual reward of the drawn orders at their first positions."""
        earned = self.drawn.reward[:, :num_places].sum(axis=1)
        return Estimate(float(earned.mean()), earned - earned.mean())

    def value(self, place: I64, attraction: F64, num_places: int) -> Sums:
        """Return the sums of a ranking over its first `num_places` positions.

        The ranking puts each candidate at `place` `[N, C]`; `attraction` `[N, C]` is a model's.
        """
        num = len(place)
        parts = np.empty((5, num))
        gradient = np.zeros((5, self.curve.basis.shape[1]))
        totals = np.zeros(4)
        for begin in range(0, num, _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            rows, slopes, full = self._rows(some, place[some], attraction[some], num_places)
            parts[:, some] = rows.sum(axis=2)
            gradient += [np.einsum("nc,ncp->p", row, slope) for row, slope in zip(rows, slopes, strict=True)]
            kept = np.minimum(full, MAX_WEIGHT).sum()
            totals += [rows[0].sum(), (rows[0] ** 2).sum(), kept, full.sum()]
        earned, squared, kept, whole = totals.tolist()
        return Sums(
            parts=parts,
            fixed=np.where(self.is_drawn, 0.0, self.drawn.reward)[:, :num_places].sum(axis=1),
            moved=(gradient / num) @ self.curve.influence.T,
            effective=earned**2 / squared if squared else 0.0,
            clipped=1.0 - kept / whole if whole else 0.0,
        )

    def _rows(
        self, some: slice, place: I64, attraction: F64, num_places: int
    ) -> tuple[F64, tuple[F64, ...], F64]:
        """Return the terms of the sums of some exposures, their gradients, and the full weights.

        The terms are `[5, n, C]`, ∂ log term / ∂ parameters `[n, C, P]` each, the weights before
        clipping `[n, C]`.
        """
        theta, basis = self.curve.theta, self.curve.basis
        counted = self.is_drawn[some] & (place < num_places)
        new, old = self._bin[np.where(counted, place, 0)], np.broadcast_to(self._bin, place.shape)
        would = np.where(counted, theta[new], 0.0)
        full = would / self.expected[some]
        weight = np.minimum(full, MAX_WEIGHT)
        earned, had = weight * self.drawn.reward[some], weight * theta[old]
        of_new = basis[new]
        # A clipped weight does not depend on the parameters.
        of_weight = np.where((full < MAX_WEIGHT)[..., None], of_new - self._mean_basis[some], 0.0)
        of_had = of_weight + basis[old]
        rows = np.stack([earned, had, would, would * attraction, had * attraction])
        return rows, (of_weight, of_had, of_new, of_new, of_had), full
