"""Estimate the examination of positions from a log, once, before anything is trained on it."""

from __future__ import annotations

import numpy as np
from sklearn.isotonic import IsotonicRegression

from serve.features.slots import F64
from serve.features.surface import Surface
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, sample
from training.examination.curve import MIN_EVENTS, fit_curve
from training.examination.examination import Examination, Source
from training.examination.learn import learn
from training.examination.placements import Bins, place_counts

# Bound the rows, in whole slates: their errors are small beside those of other assumptions.
MAX_ROWS = 300_000
# Use explored exposures where the standard error of log θ, the mean over rows, is at most this.
MAX_ERROR = 0.3
# They must reach this quantile of all positions.
DEEP = 0.95
# A standard error from fewer viewers is too small (Cameron and Miller 2015, section VI).
MIN_VIEWERS = 30


def examine(rows: Dataset, encoder: Encoder, surface: Surface) -> Examination:
    """Estimate the examination of the positions of `rows`, in whole slates.

    It comes from explored exposures if these are precise enough, else from all rows (`learn`). It
    is 1 everywhere where the surface ignores position bias, and where there are too few events.
    """
    if not surface.is_debiased or not rows.position.any():
        return Examination()
    return _explored(rows) or _learned(sample(rows, MAX_ROWS), encoder)


def _explored(rows: Dataset) -> Examination | None:
    if rows.weight is None:
        return None
    deep = np.quantile(rows.position, DEEP)
    # Slates without an event on a drawn candidate say nothing.
    is_event = (rows.label > 0) & np.isfinite(rows.weight)
    rows = sample(rows.take(np.flatnonzero(np.isin(rows.slate, rows.slate[is_event]))), MAX_ROWS)
    assert rows.weight is not None
    is_event = (rows.label > 0) & np.isfinite(rows.weight)
    num_viewers, drawn = len(np.unique(rows.viewer)), rows.position[np.isfinite(rows.weight)]
    if is_event.sum() < MIN_EVENTS or num_viewers < MIN_VIEWERS or drawn.max() < max(deep, 1):
        return None
    first, code = np.unique(rows.slate, return_index=True, return_inverse=True)[1:]
    weight = np.full((len(first), int(rows.position.max()) + 1), -np.inf)
    weight[code, rows.position] = rows.weight
    bins = Bins(weight.shape[1])
    counts = place_counts(weight, bins, np.random.default_rng(0))
    exposure, position = code[is_event], rows.position[is_event]
    curve = fit_curve(counts[exposure, position], bins.of[position], exposure, len(first), bins)
    viewer = np.unique(rows.viewer[first], return_inverse=True)[1]
    of_viewer = np.zeros((int(viewer.max()) + 1, curve.basis.shape[1]))
    np.add.at(of_viewer, viewer, curve.influence / len(first))
    error = np.sqrt(((of_viewer @ curve.basis.T) ** 2).sum(axis=0))
    if error[bins.of[rows.position]].mean() > MAX_ERROR:
        return None
    return _not_increasing("explored", np.log(curve.theta), error, bins, int(is_event.sum()))


def _learned(rows: Dataset, encoder: Encoder) -> Examination:
    num_events = int(rows.label.sum())
    if num_events < MIN_EVENTS or len(np.unique(rows.viewer)) < MIN_VIEWERS:
        return Examination()
    bins = Bins(int(rows.position.max()) + 1)
    return _not_increasing("learned", *learn(rows, encoder, bins), bins, num_events)


def _not_increasing(source: Source, value: F64, error: F64, bins: Bins, num_events: int) -> Examination:
    """Return the nearest examination that does not increase; `value` is log θ [B].

    A position is looked at by those who look at the next one, and so θ is at most 1. Rises within
    the error are averaged out: isotonic regression (Barlow, Bartholomew, Bremner and Brunk 1972).
    """
    # The first bin is the reference of all others, and as uncertain as these are beside it.
    spread = np.maximum(np.append(np.median(error[1:]), error[1:]), 1e-6)
    places, isotonic = np.arange(len(value)), IsotonicRegression(increasing=False)
    value = isotonic.fit_transform(places, value, sample_weight=spread**-2)
    theta, error = np.exp(value - value[0])[bins.of], error[bins.of]
    return Examination(source, theta.round(4).clip(1e-4).tolist(), error.round(4).tolist(), num_events)
