"""Estimate the value of another ranking from exposures whose order was drawn at random.

The value of a ranking is E Σ θ(k')·a over its candidates. A candidate at position k' is examined
with probability θ(k'), and then earns its attraction `a`.

The position-based estimator of Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen (2018,
"Offline evaluation of ranking policies with click models") gives a candidate's event the weight
w = θ(k') / Σ π(k)θ(k). This is the ratio of its new examination to its expected one, where π is the
distribution of its position over draws. The estimate is doubly robust: it takes the value from a
model â of the attraction, and adds the weighted reward that the model does not explain. It is the
mean over exposures of

    Σ θ(k')·â + w·(reward − θ(k)·â)

The draw averages out the errors of the model (Oosterhuis 2023, "Doubly robust estimation for
correcting position bias in click feedback for unbiased learning to rank"). A decision between
actions is the case of a single position, with θ = 1 and w = π'(a) / π(a).

Standard errors are linearised, include the error of θ, and count viewers as clusters. In shapes, N
is the number of exposures, C of candidates, and P of parameters of θ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.contract.errors import TabrankError
from training.evaluation.metrics import MIN_VIEWERS, Z95, Told, mean_and_error, more_log, viewers_behind
from training.examination.curve import Curve, fit_curve, prior
from training.examination.placements import F64, I64, Bins, Counts

# Weights are clipped at this value, which bounds the variance. Reports show the share clipped.
MAX_WEIGHT = 50.0
# With fewer effective events than this, the standard error itself is not reliable.
MIN_EFFECTIVE = 50.0
# With fewer events than this, the curve of examination is too uncertain.
MIN_EVENTS = 100
# So many draws give a quantile of the largest |t| to within 0.02.
NUM_DRAWS = 50_000
# This many exposures are processed at once, which bounds the memory.
_AT_ONCE = 1_000


@dataclass(frozen=True)
class Drawn:
    """N exposures whose order was drawn at random. Candidates are in the order shown, padded to C.

    Attributes:
        weight: `[N, C]`, the log weights of the draw; −inf for candidates that were not drawn and
            for padding.
        reward: `[N, C]`, 0 or 1, and 0 for padding.
        cluster: `[N]`, the viewer's number.
    """

    weight: F64
    reward: F64
    cluster: I64

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Estimate:
    """A value per exposure, and the `influence` `[N]` of each exposure on it, whose mean is 0.

    `shift` is how much the value changes if a given curve of examination is off by one standard
    error.
    """

    value: float
    influence: F64
    shift: float = 0.0

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference of two estimates on the same exposures."""
        return Estimate(self.value - other.value, self.influence - other.influence, self.shift - other.shift)

    def times(self, factor: float) -> Estimate:
        """Return the estimate of `factor` times the value."""
        return Estimate(factor * self.value, factor * self.influence, factor * self.shift)

    def error(self, cluster: I64) -> float:
        """Return the standard error with the clusters `[N]`; infinite if there is only one."""
        _, error = mean_and_error(self.influence, cluster)
        return np.inf if error is None else float(np.hypot(error, self.shift))

    def told(self, cluster: I64) -> Told:
        """Return the value of a difference and its standard error, with the clusters `[N]`.

        The value is None if it rests on fewer than `MIN_VIEWERS` clusters. Without any influence,
        both are 0: nothing differs.
        """
        is_told = not self.influence.any() or self.viewers(cluster) >= MIN_VIEWERS
        return self.value if is_told else None, self.error(cluster)

    def interval(self, cluster: I64) -> tuple[float, float]:
        """Return the 95 % interval with the clusters `[N]`."""
        reach = Z95 * self.error(cluster)
        return self.value - reach, self.value + reach

    def more_log(self, cluster: I64, errors: float = Z95) -> float | None:
        """Return how many times this log it would take to show the value of a difference."""
        return more_log(self.value, errors * self.error(cluster), self.viewers(cluster))

    def viewers(self, cluster: I64) -> float:
        """Return on how many clusters `[N]` the value rests, as `viewers_behind` counts them."""
        return viewers_behind(self.influence + self.value, cluster)


def at_once(estimates: Sequence[Estimate], cluster: I64) -> float:
    """Return of how many standard errors intervals must be to hold at 95 % for all estimates.

    It is a quantile of the largest |t| if the estimates are normal with their correlation (Hothorn,
    Bretz and Westfall 2008, "Simultaneous inference in general parametric models").
    """
    code = np.unique(cluster, return_inverse=True)[1]
    totals = [np.append(np.bincount(code, e.influence), e.shift * len(code)) for e in estimates]
    lines = [total / np.linalg.norm(total) for total in totals if total.any()]
    if not lines:
        return Z95
    correlation = np.array([[one @ other for other in lines] for one in lines])
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(len(lines)), correlation, NUM_DRAWS)
    return max(Z95, float(np.quantile(np.abs(draws).max(axis=1), 0.95)))


@dataclass(frozen=True)
class Value:
    """The estimated value of a ranking, and on how much it rests.

    Attributes:
        effective: the effective number of events, (Σ w·reward)² / Σ (w·reward)² (Kish 1965).
        clipped: the share of the weight that was clipped.
    """

    estimate: Estimate
    effective: float
    clipped: float


class Counterfactual:
    """Evaluates rankings on drawn exposures. It knows θ and how often draws put whom where."""

    def __init__(self, drawn: Drawn, bins: Bins, counts: Counts) -> None:
        """Fit θ. `counts` are the `place_counts` of the exposures' weights.

        Raises:
            TabrankError: there are too few events.
        """
        self.drawn, self.is_drawn = drawn, np.isfinite(drawn.weight)
        self._bin = bins.of[: drawn.weight.shape[1]]
        exposure, place = np.nonzero((drawn.reward > 0) & self.is_drawn)
        if len(place) < MIN_EVENTS:
            raise TabrankError(
                f"there are {len(place)} events in exposures whose order was drawn at random, but examination needs at "
                f"least {MIN_EVENTS}; collect more, or raise the arm's `explore`"
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
        # [N, C], the expected examination Σ π(k)θ(k).
        self.expected: F64 = np.where(self.is_drawn, moments[..., 0] / num_draws, 1.0)
        mean = moments[..., 1:] / np.maximum(moments[..., :1], 1e-30)
        self._mean_basis = np.where(self.is_drawn[..., None], mean, 0.0)

    @property
    def examination(self) -> F64:
        """Return θ at each position, `[C]`."""
        return self.curve.theta[self._bin]

    def logged(self) -> Estimate:
        """Return the actual reward of the drawn orders."""
        earned = self.drawn.reward.sum(axis=1)
        return Estimate(float(earned.mean()), earned - earned.mean())

    def value(self, place: I64, attraction: F64) -> Value:
        """Estimate the value of a ranking that puts each candidate at `place` `[N, C]`.

        `attraction` `[N, C]` is modelled.
        """
        num = len(place)
        # The reward that no ranking changes comes to that of the drawn candidates.
        total = np.where(self.is_drawn, 0.0, self.drawn.reward).sum(axis=1)
        gradient, totals = np.zeros(self.curve.basis.shape[1]), np.zeros(4)
        for begin in range(0, num, _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            terms, slopes, full = self._terms(some, place[some], attraction[some])
            total[some] += np.sum(terms, axis=(0, 2))
            for term, slope in zip(terms, slopes, strict=True):
                gradient += np.einsum("nc,ncp->p", term, slope)
            kept = np.minimum(full, MAX_WEIGHT).sum()
            totals += [terms[0].sum(), (terms[0] ** 2).sum(), kept, full.sum()]
        earned, squared, kept, whole = totals.tolist()
        value, moved = float(total.mean()), self.curve.influence @ (gradient / num)
        return Value(
            Estimate(value, total - value + moved),
            effective=earned**2 / squared if squared else 0.0,
            clipped=1.0 - kept / whole if whole else 0.0,
        )

    def _terms(self, some: slice, place: I64, attraction: F64) -> tuple[list[F64], list[F64], F64]:
        """Return what the values of `some` n exposures consist of.

        Returns:
            The terms w·reward, θ(k')·â and −w·θ(k)·â `[n, C]`; for each ∂ log term / ∂ parameters
            `[n, C, P]`; and the weights before clipping `[n, C]`.
        """
        theta, basis = self.curve.theta, self.curve.basis
        counted = self.is_drawn[some]
        new, old = self._bin[np.where(counted, place, 0)], np.broadcast_to(self._bin, place.shape)
        would = np.where(counted, theta[new], 0.0)
        full = would / self.expected[some]
        weight, of_new = np.minimum(full, MAX_WEIGHT), basis[new]
        # A clipped weight does not depend on the parameters.
        of_weight = np.where((full < MAX_WEIGHT)[..., None], of_new - self._mean_basis[some], 0.0)
        terms = [weight * self.drawn.reward[some], would * attraction, -weight * theta[old] * attraction]
        return terms, [of_weight, of_new, of_weight + basis[old]], full
