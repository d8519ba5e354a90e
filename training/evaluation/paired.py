"""Two contenders on the same rows: by how much one is better, with what certainty, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.evaluation.bootstrap import Bootstrap, interval
from training.evaluation.metrics import Contender
from training.evaluation.slates import F64, I64, Slates

ENOUGH = 2.0
"""Standard errors by which a model must beat another."""


def paired(ours: Contender, theirs: Contender, bootstrap: Bootstrap) -> dict[str, Any]:
    """What `ours` is above `theirs` on the same rows; None where the rows do not define it.

    * `ndcg@10`: the mean difference over the slates that can be ranked, and its standard error `se`.
    * `logloss`: the mean difference over the rows, below 0 where ours is better, and its standard error
      `logloss_se`. Both errors have viewers as clusters.
    * `auc`: the difference over all rows, and its 95 % interval `auc_interval`, by the same draws of both.
    * `gate`: as the function says.
    """
    pair: dict[str, Any] = {"ndcg@10": None, "se": None, "logloss": None, "logloss_se": None}
    pair |= {"auc": None, "auc_interval": None}
    slates = ours.slates
    pair["ndcg@10"], pair["se"] = mean_and_error(ours.ndcg - theirs.ndcg, slates.cluster[slates.rankable])
    if ours.loss is not None and theirs.loss is not None:
        of_row = slates.cluster[slates.code]
        pair["logloss"], pair["logloss_se"] = mean_and_error(ours.loss - theirs.loss, of_row)
    if ours.auc is not None and theirs.auc is not None:
        assert ours.won is not None
        assert theirs.won is not None
        drawn = bootstrap.auc(slates, ours.won) - bootstrap.auc(slates, theirs.won)
        pair |= {"auc": ours.auc - theirs.auc, "auc_interval": interval(drawn)}
    return pair | {"gate": gate(pair, slates)}


def gate(pair: Mapping[str, Any], slates: Slates) -> dict[str, Any]:
    """Whether ours `beats` theirs by two standard errors: `by` NDCG@10, or by logloss where most slates have one
    candidate and so no order. `beats` is None where the rows cannot say."""
    if 2 * int((slates.size >= 2).sum()) >= len(slates):
        by, better, error = "ndcg@10", pair["ndcg@10"], pair["se"]
    else:
        by, better, error = "logloss", pair["logloss"], pair["logloss_se"]
        better = None if better is None else -better
    return {"by": by, "beats": None if better is None else bool(better > 0 and better >= ENOUGH * error)}


def is_behind(pair: Mapping[str, Any]) -> bool:
    """Whether ours is worse by two standard errors, in what the gate goes by."""
    if pair["gate"]["by"] == "ndcg@10":
        return pair["ndcg@10"] is not None and bool(pair["ndcg@10"] < -ENOUGH * pair["se"])
    return pair["logloss"] is not None and bool(pair["logloss"] > ENOUGH * pair["logloss_se"])


def mean_and_error(values: F64, cluster: I64) -> tuple[float | None, float | None]:
    """The mean of values `[V]` and its standard error, where values of one cluster `[V]` are not independent; None,
    both, of fewer than two clusters.

    The mean is a ratio of cluster totals, whose variance is linearised: the sum over G clusters of the squared total
    of what is left over the mean, times G / (G − 1), over V² (Cochran 1977, section 6.3; Cameron and Miller 2015, "A
    practitioner's guide to cluster-robust inference", section II). Where each value is its own cluster, that is
    the standard error of a mean.
    """
    code = np.unique(cluster, return_inverse=True)[1]
    num = int(code.max(initial=-1)) + 1
    if num < 2:
        return None, None
    average = float(values.mean())
    residual = np.bincount(code, weights=values - average)
    return average, float(np.sqrt(residual @ residual * num / (num - 1)) / len(values))
