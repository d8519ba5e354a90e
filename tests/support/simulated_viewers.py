"""Viewers of simulated experiments with a known effect. Letter: V viewers."""

from __future__ import annotations

import numpy as np

from training.experiment.panel import Panel
from training.experiment.statistics import aggregates

ARMS = ("popular", "model")
# Viewers of both arms.
VIEWERS = 4_000
# Number of days after each of which the experiment is looked at. Each day has equally many new
# viewers.
LOOKS = 14
# Mean number of exposures beyond the first one, and the shape of the gamma distribution from which
# the viewers' eagerness is drawn.
MEAN_EXPOSURES, EAGERNESS = 5.0, 2.0
CLICK_RATE, JOIN_RATE = 0.3, 0.1
# Share of viewers who listen, and so have minutes.
LISTENERS = 0.3
# Expected metrics: E[eager · exposures] = 1 + m · (1 + 1 / shape).
_EAGER_EXPOSURES = 1 + MEAN_EXPOSURES * (1 + 1 / EAGERNESS)
EXPECTED = {
    "click_per_viewer": CLICK_RATE * _EAGER_EXPOSURES,
    "join_per_exposure": JOIN_RATE * _EAGER_EXPOSURES / (1 + MEAN_EXPOSURES),
}


def simulated_arms(rng, uplift):
    """Return a control and a treatment with `uplift` on the rates of click and join."""
    return aggregates(_viewers(rng, 0.0)), aggregates(_viewers(rng, uplift))


def _viewers(rng, uplift):
    """Return simulated sums [V] of each viewer.

    Eager viewers have more exposures, and more events on each of them. Therefore the numerator and
    the denominator of a ratio are correlated.
    """
    num = VIEWERS // 2
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, num)
    exposures = 1.0 + rng.poisson(MEAN_EXPOSURES * eager)
    clicks, joins = (
        rng.poisson(exposures * eager * rate * (1 + uplift)) * 1.0 for rate in (CLICK_RATE, JOIN_RATE)
    )
    return {"exposures": exposures, "click": clicks, "join": joins}


def simulated_panel(
    rng, back, *, viewers=VIEWERS, share=0.5, mean=1.0, more=0.0, uplift=(0.0,), busy=(1.0,), sd=None
):
    """Return a panel of viewers who arrive evenly over the days.

    A share `share` of the viewers is in the treatment. Each viewer returns on each later day with
    the probability `back`, and has `mean` exposures beyond the first one of a day.

    The rates of click and join are multiplied by `busy`, and in the treatment also by 1 + `uplift`.
    Both list values of days in turn, so a list of seven has one for each weekday. The treatment has
    `more` exposures, without more events. If `sd` is given, 30 % of the viewer-days have minutes,
    whose logarithm has this standard deviation.
    """
    first = np.sort(rng.integers(0, LOOKS, viewers))
    eager = rng.gamma(EAGERNESS, 1 / EAGERNESS, viewers)
    days = np.arange(LOOKS)
    here = (days == first[:, None]) | ((days > first[:, None]) & (rng.random((viewers, LOOKS)) < back))
    viewer, day = np.nonzero(here)
    treated = rng.random(viewers) < share
    exposures = 1.0 + rng.poisson(mean * eager[viewer])
    factor = np.resize(busy, LOOKS)[day] * (1 + np.resize(uplift, LOOKS)[day] * treated[viewer])
    clicks, joins = (
        rng.poisson(exposures * eager[viewer] * rate * factor) * 1.0 for rate in (CLICK_RATE, JOIN_RATE)
    )
    exposures += rng.binomial(exposures.astype(int), more * treated[viewer])
    minutes = rng.gamma(joins) if sd is None else heavy_minutes(rng, sd, len(viewer))
    sums = {"exposures": exposures, "active_days": np.ones(len(viewer))}
    sums |= {"join": joins, "click": clicks, "stay": minutes}
    return Panel(np.array(ARMS)[treated.astype(int)], first, first == 0, viewer, day, sums, {})


def heavy_minutes(rng, sd, num):
    """Return minutes [num]: lognormal for the 30 % who listen, and 0 for the others."""
    return np.exp(sd * rng.normal(size=num)) * (rng.random(num) < LISTENERS)
