"""Compare two contenders on the same rows: differences, standard errors, and whether one passes.

`gate` asks whether a model is better, for example than the popular order. `bounds` asks whether it
is not worse, for example than the current model. Both decide by the measure that `gate` names. If
the rows support it, this is what an order earns: expected labels or, with several outcomes,
expected utility.

A log of one deterministic ranking cannot tell position bias from what that ranking knew beyond the
features. If examination was learned from such a log, a claim therefore has to hold in both
readings: by expected labels, where positions make all the difference, and by NDCG@10, where they
make none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates

# A model must beat another by this many standard errors.
ENOUGH = 2.0
# A model that replaces the current one may be worse by this share of the current one's measures.
MARGIN = 0.01
# This many standard errors must lie between the estimate and the margin. On 15,000 test rows of the
# simulated world, models that earn 3 % more joins passed in 68 to 90 % of 180 pairs, and models
# that earn fewer in 0 to 5 %. With two standard errors it would be 33 to 70 %, and none.
SPARE = 1.0
# The measures of what an order earns. A pair has one of them.
EARNED = ("expected_labels", "expected_utility")
# The name of the standard error of each measure. Every measure but AUC can decide.
ERRORS = {
    **{name: f"{name}_se" for name in EARNED},
    "ndcg@10": "se",
    "logloss": "logloss_se",
    "auc": "auc_se",
}
# The ECE may be higher by this share of the positive rate. On 15,000 rows, chance gives less.
ECE_SHARE = 0.1
# The ECE of a further outcome may be higher by this many standard errors of its rate, if that is
# more. On 15,000 rows with 75 events, 95 % of 200 differences between equal models were smaller.
ECE_SPARE = 1.5


def paired(
    ours: Contender,
    theirs: Contender,
    earns: tuple[float | None, float | None] = (None, None),
    *,
    earned: str = "expected_labels",
    is_learned: bool = False,
) -> dict[str, Any]:
    """Return by how much `ours` exceeds `theirs` on the same rows, with None where undefined.

    * `expected_labels` or `expected_utility`, as `earned` says: the difference in what the orders
      earn, which `earns` gives with its standard error (`training.evaluation.worth`).
    * `ndcg@10`: the mean difference over the slates that can be ranked.
    * `logloss`: the mean difference over the rows; it is negative if ours is better.
    * `auc`: the difference over all rows.
    * `gate`: the result of `gate`. `is_learned` says whether the examination, on which the earned
      difference rests, was learned from orders as shown.

    Each difference has a standard error under its name in `ERRORS`, with viewers as clusters.
    """
    found = {earned: earns} | {name: ours.minus(theirs, name) for name in ours.terms}
    pair: dict[str, Any] = {}
    for name in filter(found.__contains__, ERRORS):
        pair[name], pair[ERRORS[name]] = found[name]
    return pair | {"gate": gate(pair, ours.slates, is_learned=is_learned)}


def gate(pair: Mapping[str, Any], slates: Slates, *, is_learned: bool = False) -> dict[str, Any]:
    """Decide whether ours `beats` theirs by two standard errors in the measure `by`.

    The measure is what an order earns, if the rows support it, and otherwise NDCG@10. If most
    slates have one candidate, and so no order, it is logloss; but if the other slates show that
    ours orders worse, it is NDCG@10 all the same. `beats` is None if the rows do not define the
    difference.

    If what an order earns rests on a learned examination, NDCG@10 has to show the same. `agrees`
    then says whether it does.
    """
    by = "ndcg@10" if slates.have_order or _side(pair, "ndcg@10") == -1 else "logloss"
    # What few viewers earn has an error and no value, and nothing else takes its place.
    by = next((name for name in EARNED if pair.get(ERRORS[name]) is not None), by)
    side = _side(pair, by)
    if by in EARNED and is_learned:
        agrees = _side(pair, "ndcg@10") == side
        return {"by": by, "beats": side == 1 and agrees, "agrees": agrees}
    return {"by": by, "beats": None if side is None else side == 1}


def shown(pair: Mapping[str, Any]) -> str:
    """Return what two standard errors show about ours, as one of the keys below.

    Orders are compared by the measure of the gate, or by NDCG@10 if logloss decides. Predictions
    are compared by logloss. "better" means an order that passes the gate with predictions that are
    not worse. "doubtful" means that only a learned examination shows an order better, or worse.
    """
    (_, order, doubt), predictions = _order(pair), _side(pair, "logloss")
    beats = pair["gate"]["beats"]
    # The first key that holds is returned.
    found = {
        "worse order": order == -1,
        "better order, worse predictions": order == 1 and predictions == -1,
        "better": order == 1 and beats,
        "worse predictions": predictions == -1,
        "doubtful": doubt == 1,
        "doubtful, worse": doubt == -1,
        "better order": order == 1,
        "better predictions": predictions == 1,
        "undefined": beats is None,
    }
    return next((what for what, holds in found.items() if holds), "nothing")


def trails(pair: Mapping[str, Any]) -> list[str]:
    """Return the measures, of order and of predictions, by which ours is worse by two errors."""
    by, order, _ = _order(pair)
    return [name for name, side in ((by, order), ("logloss", _side(pair, "logloss"))) if side == -1]


def bounds(
    pair: Mapping[str, Any],
    ours: Mapping[str, float | None],
    theirs: Mapping[str, float | None],
    positive_rate: float,
) -> list[dict[str, Any]]:
    """Check that ours is not worse than theirs by `MARGIN`, a share of their measures.

    `ours` and `theirs` are the measures of the two, and `pair` is their comparison. Returns for
    each bounded `measure` by how much ours is `worse`, how much is `allowed`, and whether the bound
    `holds`:

    - In the measure of the gate, `worse` is the estimate plus `SPARE` standard errors, so that with
      few rows ours has to be better. It is None if the rows do not define it.
    - If the examination was learned, NDCG@10 is bounded too. There, `worse` is the estimate minus
      `SPARE` standard errors.
    - For logloss and ECE, `worse` is the estimate. They are not bounded if theirs are undefined, as
      they are for a model that does not predict the primary outcome.
    """
    by = pair["gate"]["by"]
    better, error = _ahead(pair, by)
    worse = {}
    # On 15,000 rows of equal models, the bare estimate would refuse a tenth of those that pass.
    if "agrees" in pair["gate"]:
        worse["ndcg@10"] = -(pair["ndcg@10"] or 0.0) - SPARE * (pair["se"] or 0.0)
    if theirs["logloss"] is not None:
        lost = (ours["logloss"] or 0.0) - theirs["logloss"]
        worse |= {"logloss": lost, "ece": (ours["ece"] or 0.0) - (theirs["ece"] or 0.0)}
    worse[by] = None if better is None else SPARE * error - better
    allowed = {name: MARGIN * (theirs[name] or 0.0) for name in worse} | {"ece": ECE_SHARE * positive_rate}
    return [_bound(name, value, allowed[name]) for name, value in worse.items()]


def outcome_bounds(name: str, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Check that ours does not predict an outcome worse than theirs, if theirs predicts it.

    `about` is the outcome's entry of `training.evaluation.outcomes`. Returns bounds like those of
    `bounds`, each with its `outcome`. An outcome may have far fewer events than the primary one. So
    `worse` is the estimate minus `SPARE` standard errors for logloss, and the ECE may be higher by
    what chance makes it with few events.
    """
    pair, ours, theirs = about["paired"]["model-current"], about["model"], about["current"]
    if pair.get("logloss") is None:
        return []
    rate, error = about["mean_share"], about["mean_share_se"]
    lost = pair["logloss"] - SPARE * pair["logloss_se"]
    return [
        _bound("logloss", lost, MARGIN * theirs["logloss"], outcome=name),
        _bound("ece", ours["ece"] - theirs["ece"], max(ECE_SHARE * rate, ECE_SPARE * error), outcome=name),
    ]


def _bound(measure: str, worse: float | None, allowed: float, **about: str) -> dict[str, Any]:
    holds = worse is not None and bool(worse <= allowed)
    return {"measure": measure, **about, "worse": worse, "allowed": allowed, "holds": holds}


def _order(pair: Mapping[str, Any]) -> tuple[str, int | None, int | None]:
    """Return the measure of order, its `_side`, and the side that only a learned curve shows."""
    by = "ndcg@10" if pair["gate"]["by"] == "logloss" else pair["gate"]["by"]
    side = _side(pair, by)
    return (by, side, 0) if pair["gate"].get("agrees", True) else (by, 0, side)


def _ahead(pair: Mapping[str, Any], by: str) -> tuple[float | None, float]:
    """Return by how much ours is better by a measure, and the standard error."""
    value = pair[by]
    return -value if by == "logloss" and value is not None else value, pair[ERRORS[by]]


def _side(pair: Mapping[str, Any], by: str) -> int | None:
    """Return 1 if ours is better by two standard errors, -1 if it is worse, 0 if it is neither."""
    better, error = _ahead(pair, by)
    is_shown = better is not None and abs(better) >= ENOUGH * error
    return None if better is None else (int(better > 0) - int(better < 0)) * int(is_shown)
