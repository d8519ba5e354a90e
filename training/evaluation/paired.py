"""Two contenders on the same rows: by how much one is better, with what certainty, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.evaluation.bootstrap import Bootstrap, interval
from training.evaluation.metrics import Contender
from training.evaluation.slates import F64, Slates

ENOUGH = 2.0
"""Standard errors by which a model must beat another."""


def paired(ours: Contender, theirs: Contender, bootstrap: Bootstrap) -> dict[str, Any]:
    """What `ours` is above `theirs` on the same rows; None where the rows do not define it.

    * `ndcg@10`: the mean difference over the slates that can be ranked, and its standard error `se`.
    * `logloss`: the mean difference over the rows, below 0 where ours is better, and its standard error
      `logloss_se` with slates as clusters.
    * `auc`: the difference over all rows, and its 95 % interval `auc_interval`, by the same draws of both.
    * `gate`: as the function says.
    """
    pair: dict[str, Any] = {"ndcg@10": None, "se": None, "logloss": None, "logloss_se": None}
    pair |= {"auc": None, "auc_interval": None}
    slates = ours.slates
    pair["ndcg@10"], pair["se"] = mean_and_error(ours.ndcg - theirs.ndcg)
    if ours.loss is not None and theirs.loss is not None and len(slates) >= 2:
        pair["logloss"], pair["logloss_se"] = clustered_mean(slates, ours.loss - theirs.loss)
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


def mean_and_error(values: F64) -> tuple[float | None, float | None]:
    """The mean of independent values and its standard error; None, both, of fewer than two."""
    if len(values) < 2:
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def clustered_mean(slates: Slates, values: F64) -> tuple[float, float]:
    """The mean over rows of `values` `[N]` and its standard error with slates as clusters: the linearised
    variance of a ratio of cluster totals (Cochran 1977, section 6.3; Cameron and Miller 2015)."""
    average = float(values.mean())
    residual = slates.total(values) - average * slates.size
    variance = float(residual @ residual) * len(slates) / (len(slates) - 1)
    return average, float(np.sqrt(variance) / len(values))
