"""Measure each outcome that a model predicts, and compare it with its rivals.

In shapes, N is the number of rows and O of outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.features.surface import Surface
from training.data.dataset import Dataset
from training.evaluation.metrics import Contender, Values, mean, mean_and_error
from training.evaluation.slates import F64, Slates
from training.evaluation.worth import Worth
from training.examination.examination import Examination


def per_share(surface: Surface) -> F64:
    """Return what a share of 1 is worth for each outcome `[O]`: its weight times its scale."""
    return np.array([surface.worth[name] * one.scale for name, one in surface.predicted.items()])


def is_plain(surface: Surface) -> bool:
    """Return whether a row is worth its label, because the only outcome is an event of weight 1."""
    each = zip(surface.worth.values(), surface.predicted.values(), strict=True)
    return [(weight, one.until, one.sum) for weight, one in each] == [(1.0, None, None)]


def predicts(shares: Values) -> NDArray[np.bool_]:
    """Return for each outcome `[O]` whether it is predicted; otherwise its column is all NaN."""
    return np.asarray(~np.isnan(shares).all(axis=0))


def utility(surface: Surface, shares: Values) -> F64:
    """Return the sum `[N]` of shares `[N, O]`, weighed by the weights of the surface.

    An outcome that is not predicted counts as 0.
    """
    return np.asarray(np.where(predicts(shares), shares, 0.0) @ per_share(surface), np.float64)


def measured(
    data: Dataset,
    shares: Mapping[str, Values],
    surface: Surface,
    examinations: Mapping[str, Sequence[Examination]],
    worth: Worth,
    names: Sequence[str],
) -> dict[str, Any]:
    """Measure each outcome on the rows where it is known, and return plain data by outcome.

    `shares` `[N, O]` and `examinations`, one for each outcome, are given by contender. `worth`
    holds the expected amounts of the contenders `names`.

    An outcome's entry holds its declaration, `weight`, `is_bad`, `rows`, `positives`, and
    `mean_share` with its standard error. Under each contender's name it holds

    * `expected`, the amount per exposure that its order would earn, in the outcome's unit, and the
      95 % interval `expected_interval`; both are None if the rows do not support them;
    * if it predicts the outcome, `auc` (for an amount above 0), `logloss` and `ece`, and for an
      amount its `correlation` with the prediction as shown.

    `paired` holds {"model-<rival>": ...}: by how much the model exceeds the rival in `expected`,
    `auc` and `logloss`, each with a standard error.
    """
    found = {}
    for k, (name, outcome) in enumerate(surface.predicted.items()):
        part, known = data.of(k), ~np.isnan(data.outcomes[:, k])
        slates = Slates(part.label, part.slate, part.viewer)
        about = {key: value for key, value in vars(outcome).items() if value not in (None, "", False)}
        about |= {"weight": surface.worth[name], "is_bad": surface.is_bad(name)}
        about |= {"rows": len(part), "positives": int(slates.positives.sum())}
        share = part.label.astype(np.float64)
        error = mean_and_error(share, part.viewer)[1]
        about |= {"mean_share": mean(share), "mean_share_se": error, "paired": {}}
        contenders = {}
        for key, one in shares.items():
            if predicts(one)[k]:
                theta = examinations[key][k].at(part.position)
                contenders[key] = Contender.of(slates, one[known, k], one[known, k] * theta)
        for key in names:
            estimate = worth.estimates[name].get(key)
            about[key] = {
                "expected": estimate and estimate.value,
                "expected_interval": estimate and list(estimate.interval(worth.cluster)),
            }
            if key in contenders:
                about[key] |= contenders[key].measures()
                del about[key]["ndcg@10"]
                if outcome.until or outcome.sum:
                    about[key]["correlation"] = _correlation(contenders[key])
            if key != "model":
                earns = worth.weighed("model", {name: 1.0}, key)
                gain = earns.told(worth.cluster) if earns else (None, None)
                pair = dict(zip(("expected", "expected_se"), gain, strict=True))
                for by in ("auc", "logloss") if key in contenders else ():
                    # A bound holds unless it is shown not to, so few viewers are told too.
                    pair[by], pair[f"{by}_se"] = contenders["model"].minus(contenders[key], by, least=0)
                about["paired"][f"model-{key}"] = pair
        found[name] = about
    return found


def _correlation(contender: Contender) -> float | None:
    """Return the correlation of amounts with predictions as shown, or None if one is constant."""
    label, chance = contender.slates.label, contender.chance
    assert chance is not None
    constant = not len(label) or not np.ptp(label) or not np.ptp(chance)
    return None if constant else float(np.corrcoef(label, chance)[0, 1])
