"""Compare the shares of viewers who have any of an event, with however few of them.

If few viewers have an event, a variance that is estimated from them says too little: an arm without
any has none, and seems certain. But viewers are assigned independently. So of those who have the
event, each one is of the treatment with the same probability

    θ = s·p₁ / (s·p₁ + (1 − s)·p₀),

whoever else has it. Here s is the treatment's share of the viewers, and p₁ and p₀ are the
probabilities of the event in the treatment and in the control. Hence p₁ / p₀ = odds(θ) / odds(s).
That s is counted rather than the intended share makes the number vary less than it may, if there
is no effect (it is then hypergeometric).

Lindon and Malek 2022, "Anytime-Valid Inference For Multinomial Count Data" (NeurIPS, arXiv
2011.03567), give a confidence sequence for θ, from a mixture of likelihoods with a beta prior. It
holds at any look and with any number of events. At the declared end, the interval is that of
Clopper and Pearson (1934), which is exact.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import betaln, xlogy
from scipy.stats import binomtest

from training.experiment.statistics import ALPHA, Effect, Interval

# The normal approximation is used if in each arm at least this many viewers differ from what is
# usual. Over 14 looks at equal arms of 2 to 50 %, it was then wrong in at most 1.4 % of 4,000 runs,
# and at the declared end in at most 5.3 %. From one such viewer on, it was wrong in up to 8 %.
ENOUGH = 30
# Standard deviation of log(p₁ / p₀) in the prior.
PRIOR_SD = 0.5
# θ is sought this far from 0 and from 1.
EDGE = 1e-12


def shares(having: tuple[int, int], viewers: tuple[int, int]) -> tuple[Effect, Interval]:
    """Return the effect on the share of viewers who have an event, and its interval at any look.

    `having` are the viewers of control and treatment who have it, one or more in all, of `viewers`.
    An upper relative bound is None if there is none, because the control may have a share of 0.
    """
    num, share = sum(having), viewers[1] / sum(viewers)
    theirs, ours = having

    def interval(ends: tuple[float, float], p: float) -> Interval:
        mean = num / sum(viewers)
        low, high = (mean * (at / share - (1 - at) / (1 - share)) for at in ends)
        least, most = (at / (1 - at) * (1 - share) / share - 1 if at < 1 else None for at in ends)
        return Interval(low, high, least, most, p)

    def evidence(at: float) -> float:
        """Return the log of the mixture's likelihood divided by that of θ (their equation 6)."""
        return float(mixed - xlogy(ours, at) - xlogy(theirs, 1 - at))

    prior = 1 / (PRIOR_SD**2 * (1 - share)), 1 / (PRIOR_SD**2 * share)
    mixed = betaln(prior[0] + ours, prior[1] + theirs) - betaln(*prior)
    limit = math.log(1 / ALPHA)
    low = brentq(lambda at: evidence(at) - limit, EDGE, ours / num) if ours else 0.0
    high = brentq(lambda at: evidence(at) - limit, ours / num, 1 - EDGE) if theirs else 1.0

    test = binomtest(ours, num, share)
    ends = test.proportion_ci(1 - ALPHA)
    fixed = interval((float(ends.low), float(ends.high)), float(test.pvalue))
    control, treatment = theirs / viewers[0], ours / viewers[1]
    relative = treatment / control - 1 if control else None
    means = {"control": control, "treatment": treatment, "difference": treatment - control}
    effect = Effect(**vars(fixed), **means, relative=relative)
    return effect, interval((low, high), min(1.0, math.exp(-evidence(share))))
