"""Estimate the examination of positions from a log, once, before anything is trained on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.isotonic import IsotonicRegression

from serve.features.slots import F64
from serve.features.surface import Surface
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, sample
from training.examination.arms import compare_arms
from training.examination.curve import Prior, fit_curve, prior
from training.examination.examination import Examination, Source
from training.examination.learn import learn
from training.examination.placements import Bins, place_counts

# At most this many rows are used, in whole slates. Their sampling error is then small compared with
# errors in other assumptions.
MAX_ROWS = 300_000
# Explored exposures or arms are used only if the standard error of log θ, averaged over rows, is at
# most this. The limit for arms is lower, because arms that hardly differ seem to say more than they
# do (Staiger and Stock 1997, "Instrumental variables regression with weak instruments"). On 6,000
# slates of simulated worlds, two equal arms have an error of 0.5 or more, and two that differ have
# one of 0.1 to 0.2.
MAX_ERROR = {"explored": 0.5, "arms": 0.35}
# With fewer events, a learned curve is too uncertain. Drawn exposures need fewer, because they only
# correct the learned curve.
MIN_EVENTS, MIN_DRAWN = 100, 50
# An outcome with fewer events uses the curve of the primary one, which is more certain.
MIN_OWN_EVENTS = 2_000
# Explored exposures must reach this quantile of all positions.
DEEP = 0.95
# With fewer viewers, a standard error is too small (Cameron and Miller 2015, section VI).
MIN_VIEWERS = 30


def examine_each(rows: Dataset, encoder: Encoder, surface: Surface) -> list[Examination]:
    """Estimate the examination of positions for each outcome of `rows`.

    Outcomes of the same event share it. An outcome with few events has the examination of the
    primary outcome, because looking at a position is the same act, whatever follows.
    """
    by_event: dict[str, Examination] = {}
    for k, outcome in enumerate(surface.predicted.values()):
        if outcome.event not in by_event:
            part = rows.of(k)
            happened = replace(part, outcomes=(part.outcomes > 0).astype(np.float32))
            found = examine(happened, encoder, surface)
            primary = next(iter(by_event.values()), found)
            by_event[outcome.event] = found if found.events >= MIN_OWN_EVENTS else primary
    return [by_event[outcome.event] for outcome in surface.predicted.values()]


def examine(rows: Dataset, encoder: Encoder, surface: Surface) -> Examination:
    """Estimate the examination of positions from `rows`, which are whole slates.

    It comes from explored exposures or from an experiment's arms, whichever gives the more precise
    curve. If neither is precise enough, it is learned from all rows (`learn`). It is 1 everywhere
    if the surface ignores position bias or there are too few events.

    Rows that requests pinned are left out, because people chose their places for reasons that no
    feature knows.
    """
    if rows.pinned is not None:
        return replace(examine(rows.unpinned(), encoder, surface), pinned=int(rows.pinned.sum()))
    if not surface.is_debiased or not rows.position.any():
        return Examination()
    bins, part = Bins(int(rows.position.max()) + 1), sample(rows, MAX_ROWS)
    if int(part.label.sum()) < MIN_EVENTS or len(np.unique(part.viewer)) < MIN_VIEWERS:
        return Examination()
    value, error = learn(part, encoder, bins)
    measured = [_explored(rows, bins, prior(bins, value)), _arms(rows, encoder, bins, prior(bins, value))]

    def off(one: Examination) -> float:
        return float(np.asarray(one.error)[rows.position].mean())

    precise = [one for one in measured if one and off(one) <= MAX_ERROR[one.source]]
    learned = _not_increasing("learned", value, error, bins, int(part.label.sum()))
    return min(precise, key=off, default=learned)


def _explored(rows: Dataset, bins: Bins, prior: Prior) -> Examination | None:
    if rows.weight is None:
        return None
    deep = np.quantile(rows.position, DEEP)
    # Slates without an event on a drawn candidate say nothing.
    rows = sample(rows, MAX_ROWS, (rows.label > 0) & np.isfinite(rows.weight))
    assert rows.weight is not None
    is_event = (rows.label > 0) & np.isfinite(rows.weight)
    num_viewers, drawn = len(np.unique(rows.viewer)), rows.position[np.isfinite(rows.weight)]
    if is_event.sum() < MIN_DRAWN or num_viewers < MIN_VIEWERS or drawn.max() < max(deep, 1):
        return None
    first, code = np.unique(rows.slate, return_index=True, return_inverse=True)[1:]
    weight = np.full((len(first), int(rows.position.max()) + 1), -np.inf)
    weight[code, rows.position] = rows.weight
    counts = place_counts(weight, bins, np.random.default_rng(0))
    position, viewer = rows.position[is_event], np.unique(rows.viewer, return_inverse=True)[1]
    known = counts[code[is_event], position], bins.of[position], viewer[is_event]
    curve, columns = fit_curve(*known, num_viewers, prior), prior[0]
    variance = ((curve.influence @ columns.T / num_viewers) ** 2).sum(axis=0)
    # With few events the ridge determines the curve, and the events alone would show no error.
    variance = np.maximum(variance, (columns @ curve.covariance * columns).sum(axis=1))
    return _not_increasing("explored", np.log(curve.theta), np.sqrt(variance), bins, int(is_event.sum()))


def _arms(rows: Dataset, encoder: Encoder, bins: Bins, prior: Prior) -> Examination | None:
    if rows.arm is None:
        return None
    rows = sample(rows, MAX_ROWS, rows.arm >= 0)
    assert rows.arm is not None
    # Each viewer has one arm, so the first row of a viewer tells it.
    arms, num_viewers = np.unique(rows.arm[np.unique(rows.viewer, return_index=True)[1]], return_counts=True)
    arms = arms[num_viewers >= MIN_VIEWERS]
    rows = rows.take(np.flatnonzero(np.isin(rows.arm, arms)))
    if len(arms) < 2 or rows.label.sum() < MIN_EVENTS:
        return None
    found = compare_arms(rows, encoder, bins, prior)
    return found and _not_increasing("arms", *found, bins, int(rows.label.sum()))


def _not_increasing(source: Source, value: F64, error: F64, bins: Bins, num_events: int) -> Examination:
    """Return the nearest examination that does not increase with the position.

    `value` is log θ `[B]`. Whoever looks at a position also looked at those above it, so θ never
    rises and is at most 1. Rises, which are due to errors, are averaged out by isotonic regression
    (Barlow, Bartholomew, Bremner and Brunk 1972).
    """
    # The first bin is the reference of all others, so it is as uncertain as they typically are.
    spread = np.maximum(np.append(np.median(error[1:]), error[1:]), 1e-6)
    places, isotonic = np.arange(len(value)), IsotonicRegression(increasing=False)
    value = isotonic.fit_transform(places, value, sample_weight=spread**-2)
    theta, error = np.exp(value - value[0])[bins.of], error[bins.of]
    return Examination(source, theta.round(4).clip(1e-4).tolist(), error.round(4).tolist(), num_events)
