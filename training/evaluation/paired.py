"""Paired comparison of two contenders on the same rows: difference, standard error and gates.

`gate` asks for superiority (against popular), `bounds` for non-inferiority (against the current
model). Both decide by the measure that `gate` names: what an order earns, expected labels or the
expected utility of several outcomes, where the rows support it.
A log of one deterministic ranking cannot tell position bias from what that ranking knew beyond the
features. Where examination is learned from such a log, a claim has to hold under both readings: by
expected labels, where positions make the difference, and by NDCG@10, where they make none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates

# Standard errors by which a model must beat another.
ENOUGH = 2.0
# Share of the current model's measures by which a model that replaces it may be worse.
MARGIN = 0.01
# Standard errors that must lie between the estimate and the margin. On 15,000 test rows of the
# simulated world, models that earn 3 % more joins passed in 68 to 90 % of 180 pairs; with two
# standard errors, in 33 to 70 %. Worse ones passed in 0 to 5 % and in none.
SPARE = 1.0
# Measures of what an order earns; a pair has one of them.
EARNED = ("expected_labels", "expected_utility")
# Name of the standard error of each measure; all but AUC can decide.
ERRORS = {
    **{name: f"{name}_se" for name in EARNED},
    "ndcg@10": "se",
    "logloss": "logloss_se",
    "auc": "auc_se",
}
# Share of the positive rate by which its ECE may be higher: 15,000 rows give less by chance.
ECE_SHARE = 0.1
# Standard errors of the rate by which that of a further outcome may be higher, if they are more. Of
# equal models, 95 % of 200 differences were within that, on 15,000 rows with 75 events.
ECE_SPARE = 1.5


def paired(
    ours: Contender,
    theirs: Contender,
    earns: tuple[float | None, float | None] = (None, None),
    *,
    earned: str = "expected_labels",
    is_learned: bool = False,
) -> dict[str, Any]:
    """Return by how much `ours` is above `theirs` on the same rows; None where undefined.

    * `expected_labels` or `expected_utility`, which `earned` names: the difference that ours
      `earns`, with its standard error (`training.evaluation.worth`).
    * `ndcg@10`: mean difference over the slates that can be ranked.
    * `logloss`: mean difference over the rows, below 0 where ours is better.
    * `auc`: difference over all rows.
    * `gate`: the result of `gate`; `is_learned` says that the examination behind what ours earns
      is learned from orders as shown.

    Each difference has its standard error under the name in `ERRORS`, with viewers as clusters.
    """
    found = {earned: earns} | {name: ours.minus(theirs, name) for name in ours.terms}
    pair: dict[str, Any] = {}
    for name in filter(found.__contains__, ERRORS):
        pair[name], pair[ERRORS[name]] = found[name]
    return pair | {"gate": gate(pair, ours.slates, is_learned=is_learned)}


def gate(pair: Mapping[str, Any], slates: Slates, *, is_learned: bool = False) -> dict[str, Any]:
    """Decide whether ours `beats` theirs by two standard errors, in the measure `by`.

    The measure is what an order earns where the rows support it; else NDCG@10, or logloss where
    most slates have one candidate and so no order, unless the others show that ours orders worse.
    `beats` is None where the rows do not define the difference. What is earned by a learned
    examination needs NDCG@10 to show the same; `agrees` is then whether it does.
    """
    by = "ndcg@10" if slates.have_order or _side(pair, "ndcg@10") == -1 else "logloss"
    by = next((name for name in EARNED if pair.get(name) is not None), by)
    side = _side(pair, by)
    if by in EARNED and is_learned:
        agrees = _side(pair, "ndcg@10") == side
        return {"by": by, "beats": side == 1 and agrees, "agrees": agrees}
    return {"by": by, "beats": None if side is None else side == 1}


def shown(pair: Mapping[str, Any]) -> str:
    """Return what two standard errors show of ours, in the words of the keys below.

    Order is by the measure of the gate, or by NDCG@10 where logloss decides; predictions are by
    logloss. "better" is a better order that passes the gate, with predictions that are not worse;
    "doubtful" a better one, or a worse one, by a learned examination alone.
    """
    (_, order, doubt), predictions = _order(pair), _side(pair, "logloss")
    beats = pair["gate"]["beats"]
    # The first one that holds is told.
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
    """Return the measures, of order and predictions, in which two errors show ours worse."""
    by, order, _ = _order(pair)
    return [name for name, side in ((by, order), ("logloss", _side(pair, "logloss"))) if side == -1]


def bounds(
    pair: Mapping[str, Any],
    ours: Mapping[str, float | None],
    theirs: Mapping[str, float | None],
    positive_rate: float,
    margin: float,
) -> list[dict[str, Any]]:
    """Check that ours is not worse than theirs by `margin`, a share of their measures.

    `ours` and `theirs` are measures, and `pair` is their comparison. Return for each bounded
    `measure` by how much ours is `worse`, how much is `allowed`, and whether that `holds`. In the
    measure of the gate, `worse` is the estimate plus `SPARE` standard errors, so that few rows need
    a gain; it is None where the rows do not define it. NDCG@10, which a learned examination needs
    beside it, is the estimate less so many. Logloss and ECE are bounded in the estimate, unless
    theirs are not defined, as those of a model that does not predict the primary outcome.
    """
    by = pair["gate"]["by"]
    better, error = _ahead(pair, by)
    worse = {}
    # On 15,000 rows of equal models, the estimate alone would refuse a tenth of those that pass.
    if "agrees" in pair["gate"]:
        worse["ndcg@10"] = -(pair["ndcg@10"] or 0.0) - SPARE * (pair["se"] or 0.0)
    if theirs["logloss"] is not None:
        worse |= {"logloss": pair["logloss"], "ece": (ours["ece"] or 0.0) - (theirs["ece"] or 0.0)}
    worse[by] = None if better is None else SPARE * error - better
    allowed = {name: margin * (theirs[name] or 0.0) for name in worse} | {"ece": ECE_SHARE * positive_rate}
    return [_bound(name, value, allowed[name]) for name, value in worse.items()]


def outcome_bounds(name: str, about: Mapping[str, Any], margin: float) -> list[dict[str, Any]]:
    """Check that ours predicts an outcome not worse than theirs, if theirs predicts it.

    `about` is the outcome's entry of `training.evaluation.outcomes`. Return bounds as `bounds`,
    with the `outcome`. Not every outcome has the events of the primary one, so logloss is the
    estimate less `SPARE` standard errors, and ECE may be higher by what few events make it.
    """
    pair, ours, theirs = about["paired"]["model-current"], about["model"], about["current"]
    if pair.get("logloss") is None:
        return []
    rate, error = about["mean_share"], about["mean_share_se"]
    lost = pair["logloss"] - SPARE * pair["logloss_se"]
    return [
        _bound("logloss", lost, margin * theirs["logloss"], outcome=name),
        _bound("ece", ours["ece"] - theirs["ece"], max(ECE_SHARE * rate, ECE_SPARE * error), outcome=name),
    ]


def _bound(measure: str, worse: float | None, allowed: float, **about: str) -> dict[str, Any]:
    holds = worse is not None and bool(worse <= allowed)
    return {"measure": measure, **about, "worse": worse, "allowed": allowed, "holds": holds}


def _order(pair: Mapping[str, Any]) -> tuple[str, int | None, int | None]:
    """Return the measure of order, the side that it shows, and the one by a learned curve alone."""
    by = "ndcg@10" if pair["gate"]["by"] == "logloss" else pair["gate"]["by"]
    side = _side(pair, by)
    return (by, side, 0) if pair["gate"].get("agrees", True) else (by, 0, side)


def _ahead(pair: Mapping[str, Any], by: str) -> tuple[float | None, float]:
    """Return by how much ours is better in a measure, and the standard error."""
    value = pair[by]
    return -value if by == "logloss" and value is not None else value, pair[ERRORS[by]]


def _side(pair: Mapping[str, Any], by: str) -> int | None:
    """Return 1 if ours is better in a measure by two standard errors, -1 if worse, 0 if neither."""
    better, error = _ahead(pair, by)
    is_shown = better is not None and abs(better) >= ENOUGH * error
    return None if better is None else (int(better > 0) - int(better < 0)) * int(is_shown)
