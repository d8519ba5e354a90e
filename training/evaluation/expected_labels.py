"""Expected labels: how many label events per exposure each contender's order would earn.

A candidate that moves from position k to k' is looked at θ(k') / θ(k) times as often, so its label
event counts with this weight. If the shown order was drawn at random, the mean examination over
draws takes the place of θ(k), as in `training.evaluation.counterfactual`. Weights are clipped, and
a model of attraction replaces the clipped part (Su, Dimakopoulou, Krishnamurthy and Dudík 2020,
"Doubly robust off-policy evaluation with shrinkage").

For example, with θ = 1 at the first position and 0.5 at the third, a join at the third position
counts twice for a contender that puts this candidate first.

In shapes, N is the number of rows and P of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.evaluation.attraction import modelled
from training.evaluation.counterfactual import MAX_WEIGHT, MIN_EFFECTIVE, Estimate
from training.evaluation.metrics import Contender
from training.evaluation.slates import F64, I64, Slates
from training.examination.examination import Examination
from training.examination.placements import drawn_orders

# Where the order was not drawn at random, weights are clipped at MAX_MOVED. With more than
# FEW_EVENTS label events, the clip is multiplied by the root of their ratio. With few events, the
# clip makes the differences of two models vary by a third less where examination falls in steps. On
# 6,000 slates whose ranker knew more than the features, a fixed clip at 1.5 is off by 3.5 standard
# errors, and this one by less than 0.1.
MAX_MOVED, FEW_EVENTS = 1.5, 500
# The logarithm of examination must differ from 0 at some position by this many standard errors.
FALLS = 2.0
SEED = 0
_EXPLORE = "set `explore` for an arm in cluster.yaml"


def expected_labels(
    contenders: Mapping[str, Contender],
    position: I64,
    examination: Examination,
    log_weight: F64 | None,
    odds: F64,
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Estimate the label events per exposure of each contender, all on the same slates.

    Each order places the rows of a slate at the positions `[N]` that they had. `log_weight` `[N]`
    is the log weight with which the shown order was drawn, and NaN for rows that were not drawn.
    Attraction is modelled from `odds` `[N, columns]`, such as those of
    `training.evaluation.worth.odds_of`.

    Returns:
        The entry `expected_labels` of an evaluation, and the estimates by contender. The entry
        holds the `source` of the examination; `explored_rows`, whose order was drawn;
        `effective_events` by contender (Kish 1965); the `reason` if there are no estimates; and a
        `note` on what would make them better.
    """
    slates = next(iter(contenders.values())).slates
    drawn = np.zeros(len(position), bool) if log_weight is None else np.isfinite(log_weight)
    about: dict[str, Any] = {"source": examination.source, "explored_rows": int(drawn.sum())}
    about |= {"effective_events": {}, "reason": _unsupported(slates, examination), "note": None}
    if about["reason"]:
        return about, {}
    places = np.arange(position.max() + 1)
    theta, label = examination.at(places), slates.label.astype(np.float64)
    # How much log θ changes if it is off by one standard error at all positions alike.
    off = Examination(theta=examination.error).at(places)
    # A clip that grows like the root of the sample bounds the variance, and its bias vanishes as
    # the sample grows (Ionides 2008, "Truncated importance sampling").
    moved = MAX_MOVED * max(1.0, np.sqrt(label.sum() / FEW_EVENTS))
    looked, most = theta[position], np.where(drawn, MAX_WEIGHT, moved)
    if log_weight is not None:
        looked[drawn] = _over_draws(slates, position, log_weight, theta)
    of_viewer = slates.cluster[slates.code]
    worth, worth_influence = modelled(label, theta[position], of_viewer, odds)
    estimates = {}
    for name, contender in contenders.items():
        place = placed(contender, position)
        weight = np.minimum(theta[place] / looked, most)
        earned, rest = weight * label, theta[place] - weight * theta[position]
        rows = earned + rest * worth
        total = slates.total(rows)
        value = float(total.mean())
        # For drawn rows, `off` at the shown position equals that of the mean examination on
        # average.
        shift = float(rows @ (off[place] - off[position]) / len(slates))
        estimates[name] = Estimate(value, total - value + slates.total(worth_influence(rest)), shift)
        about["effective_events"][name] = float(earned.sum() ** 2 / max(earned @ earned, 1e-12))
    least = min(about["effective_events"].values())
    if least < MIN_EFFECTIVE:
        need = f"and {MIN_EFFECTIVE:.0f} are needed: give more rows"
        about["reason"] = f"{least:.0f} effective label events, {need}"
    elif examination.source == "learned":
        about["note"] = (
            "examination is learned from orders as shown, and the old ranker may have known more than these features, "
            f"so NDCG@10 has to agree; to measure it, {_EXPLORE}, or run an experiment whose arms order otherwise"
        )
    return about, {} if about["reason"] else estimates


def placed(contender: Contender, position: I64) -> I64:
    """Return the position `[N]` of each row if the contender orders each slate."""
    place = np.empty_like(position)
    place[contender.order] = position[np.lexsort((position, contender.slates.code))]
    return place


def _unsupported(slates: Slates, examination: Examination) -> str | None:
    """Return why the rows support no estimate, whatever their labels are; None if they may."""
    if not len(slates):
        return "its window is open at all rows: give a longer log"
    if examination.source == "ignored":
        return (
            "the model knows no examination of positions (position_bias ignored, impressions by clients, or too few "
            f"labels): to know it, {_EXPLORE}"
        )
    if not (np.abs(np.log(examination.theta)) > FALLS * np.asarray(examination.error)).any():
        return f"examination is the same at all positions within its error, so every order earns the same: {_EXPLORE}"
    if not slates.have_order:
        return "most slates have one candidate, so every order earns the same"
    return None if slates.cluster.any() else "all rows are of one viewer: measure more rows"


def _over_draws(slates: Slates, position: I64, log_weight: F64, theta: F64) -> F64:
    """Return the mean examination over draws for each drawn row, in order; `theta` is `[P]`."""
    rows = np.flatnonzero(np.isfinite(log_weight))
    code = np.unique(slates.code[rows], return_inverse=True)[1]
    weight = np.full((int(code.max(initial=-1)) + 1, len(theta)), -np.inf)
    weight[code, position[rows]] = log_weight[rows]
    mean = np.empty_like(weight)
    for part, order in drawn_orders(weight, np.random.default_rng(SEED)):
        mean[part] = theta[np.argsort(order, axis=2)].mean(axis=0)
    return np.asarray(mean[code, position[rows]], np.float64)
