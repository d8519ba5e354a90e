"""Viewers of simulated experiments with a known effect. Letter: V viewers."""

from __future__ import annotations

import numpy as np

from training.experiment.panel import SUMS, Panel
from training.experiment.statistics import aggregates

ARMS = ("popular", "model")
# Viewers of both arms.
VIEWERS = 4_000
# Days with a look, with equally many new viewers on each.
LOOKS = 14
# Mean exposures beyond the first one, and shape of the gamma distribution of eagerness.
MEAN_EXPOSURES, EAGERNESS = 5.0, 2.0
CLICK_RATE, JOIN_RATE = 0.3, 0.1
# Expected metrics: E[eager · exposures] = 1 + m · (1 + 1 / shape).
_EAGER_EXPOSURES = 1 + MEAN_EXPOSURES * (1 + 1 / EAGERNESS)
EXPECTED = {
    "clicks": CLICK_RATE * _EAGER_EXPOSURES,
    "join_rate": JOIN_RATE * _EAGER_EXPOSURES / (1 + MEAN_EXPOSURES),
}


def simulated_arms(rng, uplift):
    """Return a control and a treatment with `uplift` on the rates of click and join."""
    return aggregates(_viewers(rng, 0.0)), aggregates(_viewers(rng, uplift))


def _viewers(rng, uplift):
    """Return simulated sums [V]. Eager viewers have more exposures, and more events on each.

    Numerator and denominator of ratios are therefore correlated.
    """
    num = VIEWERS // 2
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, num)
    exposures = 1.0 + rng.poisson(MEAN_EXPOSURES * eager)
    clicks, joins = (
        rng.poisson(exposures * eager * rate * (1 + uplift)) * 1.0 for rate in (CLICK_RATE, JOIN_RATE)
    )
    return {"exposures": exposures, "clicks": clicks, "joins": joins}


def simulated_panel(rng, back):
    """Return a panel of viewers who arrive evenly over the days, in two arms without a difference.

    Each viewer returns on each later day with probability `back`.
    """
    first = np.sort(rng.integers(0, LOOKS, VIEWERS))
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, VIEWERS)
    days = np.arange(LOOKS)
    here = (days == first[:, None]) | ((days > first[:, None]) & (rng.random((VIEWERS, LOOKS)) < back))
    viewer, day = np.nonzero(here)
    exposures = 1.0 + rng.poisson(eager[viewer])
    clicks, joins = (rng.poisson(exposures * eager[viewer] * rate) * 1.0 for rate in (CLICK_RATE, JOIN_RATE))
    arm, active_days = np.array(ARMS)[rng.integers(0, 2, VIEWERS)], np.ones(len(viewer))
    sums = dict(zip(SUMS, (exposures, active_days, clicks, joins, rng.gamma(joins)), strict=True))
    return Panel(arm, first, first == 0, viewer, day, sums, {})
