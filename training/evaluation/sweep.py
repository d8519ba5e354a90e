"""The exchange rate of a weight: what each weight in a range gains and costs on a log."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.contract.errors import TabrankError, did_you_mean
from serve.features.slots import F32
from serve.features.surface import Surface, read_surface
from serve.model.artifact import load as load_artifact
from serve.ranking.exploration import log_weight as log_odds
from serve.ranking.utility import Weighing
from training.data.dataset import Dataset, Progress
from training.evaluation.evaluate import measured_by, read_rows, score
from training.evaluation.metrics import Z95, Values, more_log
from training.evaluation.slates import I64, Slates
from training.evaluation.verdict import not_beaten
from training.evaluation.worth import expected_amounts
from training.examination.examination import Examination

# This many first places of a ranking are compared.
TOP = 10
# An outcome with its least and its largest weight, such as hide=-50..0.
SWEEP = re.compile(r"(\w+)=(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)", re.ASCII)
# The largest weight, positive or negative, that a surface accepts.
MOST = 1e6
# The name of the order by the surface's own weights.
OWN = "own"
UNKNOWN = "its manifest does not say whether it beats popular, so fit it again"


def sweep_log(
    model: Path, history: Path | None, log: Path, sweep: str, steps: int, give: float, progress: Progress
) -> dict[str, Any]:
    """Return the result of `exchange` for an artifact on the rows of a log.

    `sweep` is for example "hide=-50..0", and `steps` is the number of weights to try. The result
    also holds `version`, `surface`, `rows_seen_in_training`, and as `doubts` which rivals the model
    was not shown to beat. With a doubt, no weight is chosen.

    Raises:
        TabrankError: the artifact, the log or the sweep is invalid, or the log supports no
        estimate.
    """
    artifact = load_artifact(model)
    surface = read_surface((model / "surface.toml").read_text(), str(model / "surface.toml"))
    name, values = swept_weights(sweep, surface, steps)
    data, about = read_rows(surface, history, log, progress)
    examinations = Examination.of(artifact.manifest)
    found = exchange(data, score(model, data.matrix), surface, examinations, name, values, give)
    pairs = artifact.manifest.get("paired", {})
    doubts = not_beaten(pairs) if "model-popular" in pairs else [UNKNOWN]
    doubts = [*doubts, *artifact.manifest.get("suspects", [])]
    found |= {"doubts": doubts} | ({"chosen": None} if doubts else {})
    return measured_by(artifact, data) | about | found


def swept_weights(sweep: str, surface: Surface, steps: int) -> tuple[str, list[float]]:
    """Return the outcome and the weights of a sweep such as "hide=-50..0".

    Raises:
        TabrankError: the sweep is malformed, or does not fit the surface's outcomes.
    """
    where, predicted = f"--sweep {sweep}", surface.predicted
    found = SWEEP.fullmatch(sweep)
    name, low, high = (found[1], float(found[2]), float(found[3])) if found else ("", 0.0, 0.0)
    if not -MOST <= low < high <= MOST:
        raise TabrankError(
            f"{where}: write an outcome, its least weight and then its largest, such as hide=-50..0"
        )
    if name not in (further := list(predicted)[1:]):
        raise TabrankError(
            f"{where}: {name!r} is no outcome that the model predicts beside {next(iter(predicted))}, its primary one"
            f"{did_you_mean(name, further)}; it predicts {', '.join(predicted)}, and the surface has "
            f"{', '.join(surface.outcomes)}. To sweep another, give it a weight in [weights], and fit again"
        )
    if high > 0 and surface.outcomes[name].bad:
        raise TabrankError(f"{where}: {high:g} rewards a bad outcome; end the sweep at 0")
    # Round the weights to what is printed, because people copy that.
    return name, [float(f"{value:.6g}") for value in np.linspace(low, high, steps)]


def exchange(
    data: Dataset,
    shares: F32,
    surface: Surface,
    examinations: Sequence[Examination],
    name: str,
    values: Sequence[float],
    give: float,
) -> dict[str, Any]:
    """Rank the rows with each weight of an outcome, and compare with the surface's own weights.

    `shares` `[N, O]` are a model's predictions. Rows that requests pinned are left out, because no
    weight moves them. Returns plain data for JSON:

    * `rows`, `pinned_rows` (left out), `slates`, `outcome` (whose weight is varied), `own` (the
      surface's weights), `primary`, `units` by outcome, `give`, and `about` of
      `training.evaluation.worth` by outcome.
    * `points`: for each `weight`, `places_changed` is the share of the first ten places that show
      another candidate, and `outcomes` holds by name the result of `Worth.compared` against the
      surface's own weights, or null if the rows do not support it. For the swept outcome, `reach`
      and `more_log` are those of intervals that hold for all weights at once, because the best of
      them is chosen. The primary outcome loses more with each step, so a single weight decides.
    * `chosen`: the recommended weight, or null. It is the strongest weight that has the sign of the
      surface's own weight, is stronger, and has three properties. The swept outcome is shown to
      change in the direction that the weight asks for. The primary outcome is shown to lose less
      than `give`. No other outcome is shown to lose more than `give`; a bad one loses if it rises.
    * `more_log`: how many times this log it would take for the nearest weight, `nearest`, as the
      estimates stand; null if one is chosen, or if more log would not help.

    Raises:
        TabrankError: the rows support no estimate of the primary outcome or of the swept one.
    """
    num_rows = len(data)
    if data.pinned is not None:
        shares, data = shares[~data.pinned], data.unpinned()
    own, slates = surface.worth, Slates(data.outcomes[:, 0], data.slate, data.viewer)
    primary, scales = next(iter(own)), {key: one.scale for key, one in surface.predicted.items()}
    moved = {OWN: own} | {f"{value:g}": own | {name: value} for value in values}
    orders = {key: Weighing(one, [*scales.values()]).utility(shares) for key, one in moved.items()}
    # An order depends on all shares, so attraction is modelled from all of them.
    worth = expected_amounts(data, orders, scales, examinations, [log_odds(shares)] * len(own))
    for needed in (primary, name):
        if reason := worth.about[needed]["reason"]:
            raise TabrankError(f"the log supports no estimate of {needed}: {reason}")

    errors = dict.fromkeys(own, Z95) | {name: worth.at_once(name, OWN)}
    first = {key: _first_places(slates, order) for key, order in orders.items()}
    points: list[dict[str, Any]] = [
        {
            "weight": value,
            "places_changed": float((first[f"{value:g}"] != first[OWN]).mean()),
            "outcomes": {one: worth.compared(one, f"{value:g}", OWN, errors[one]) for one in own},
        }
        for value in values
    ]
    times = {one["weight"]: _times_the_log(one, name, primary, surface, give) for one in points}
    times = {one: times[one] for one in values if abs(one) > abs(own[name]) and one * own[name] >= 0}
    chosen = max((value for value, needed in times.items() if needed <= 1), key=abs, default=None)
    within = {value: needed for value, needed in times.items() if chosen is None and np.isfinite(needed)}
    nearest = min(within, key=lambda value: within[value], default=None)
    return {
        "rows": len(data),
        "pinned_rows": num_rows - len(data),
        "slates": len(slates),
        "outcome": name,
        "own": own,
        "primary": primary,
        "units": {key: "min" if one.until else one.unit for key, one in surface.predicted.items()},
        "give": give,
        "about": worth.about,
        "points": points,
        "chosen": chosen,
        "nearest": nearest,
        "more_log": None if nearest is None else within[nearest],
    }


def _times_the_log(point: Mapping[str, Any], name: str, primary: str, surface: Surface, give: float) -> float:
    """Return how many times this log it would take to recommend a weight; at most 1 if it is now.

    It is infinite if the weight loses too much, or moves its outcome in the wrong direction.
    """
    found = {outcome: one for outcome, one in point["outcomes"].items() if one}
    for outcome in found.keys() - {name, primary}:
        _, low, high = found[outcome]["relative"]
        if (low if surface.is_bad(outcome) else -high) > give:
            return np.inf
    own, first = found[name], found[primary]
    spare = first["relative"][0] + give
    # If a model predicts an outcome badly, a weight may move it in the wrong direction.
    if own["change"][0] * point["weight"] <= 0 or spare <= 0:
        return np.inf
    return max(float(own["more_log"]), more_log(spare, first["reach"], first["viewers"]) or np.inf)


def _first_places(slates: Slates, order: Values) -> I64:
    """Return the rows in the first TOP places of each slate, slate by slate."""
    rows = slates.order(order)
    return rows[slates.place(rows) < TOP]
