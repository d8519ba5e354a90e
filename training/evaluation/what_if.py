"""What if an arm ranked otherwise: estimates from a log of other weights, and of its slate rules.

In shapes, N is the number of rows, O of outcomes, S of rankings and C of one ranking's candidates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.config.settings import CANARY, CURRENT, Arm
from serve.config.slate import Rule
from serve.contract.errors import TabrankError, did_you_mean
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import F32, F64, I64, Bools
from serve.features.surface import Surface
from serve.model.artifact import CANARY as CANARY_POINTER
from serve.model.artifact import Artifact, current, pointed, require
from serve.model.compatibility import load_for
from serve.ranking.exploration import log_weight as log_odds
from serve.ranking.order import LIVE, ordered
from serve.ranking.slate import rerank
from serve.ranking.slate.where import facts_of
from serve.ranking.utility import Weighing, Weighings
from training.data.dataset import Dataset
from training.evaluation.evaluate import measured_by, opened, read_rows, score, suspects_of
from training.evaluation.metrics import Z95, Values, more_log
from training.evaluation.slates import TIE_SEED, Slates
from training.evaluation.verdict import not_beaten
from training.evaluation.worth import expected_amounts
from training.examination.examination import IGNORED, Examination
from training.terminal import ProgressLines

# This many first places of a ranking are compared.
TOP = 10
# An outcome with its least and its largest weight, such as hide=-50..0.
SWEEP = re.compile(r"(\w+)=(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)", re.ASCII)
# The largest weight, positive or negative, that a surface accepts.
MOST = 1e6
# So many weights of a sweep are tried, evenly spaced.
NUM_WEIGHTS = 11
# A recommended weight loses less than this share of the primary outcome.
GIVE = 0.01
# The name of the order by the surface's own weights.
OWN = "own"
# The names of two sets of rules.
ALL, NONE = "all rules", "no rules"
# At most this many rows are ranked again with rules, which bounds the memory (about 1 GiB) and the
# time (minutes). This is enough for narrow intervals.
MOST_ROWS = 1_000_000


def sweep_log(model: Path, history: Path | None, log: Path, sweep: str) -> dict[str, Any]:
    """Return the result of `exchange` for an artifact on the rows of a log.

    `sweep` is for example "hide=-50..0". The result also holds `version`, `surface`,
    `rows_seen_in_training`, and as `doubts` which rivals the model was not shown to beat. With a
    doubt, no weight is chosen.

    Raises:
        TabrankError: the artifact, the log or the sweep is invalid, or the log supports no
        estimate.
    """
    artifact, surface = opened(model)
    doubts = [*not_beaten(artifact.manifest["paired"]), *suspects_of(artifact)]
    name, values = swept_weights(sweep, surface)
    data, about = read_rows(surface, history, log, ProgressLines("weights"))
    examinations = Examination.of(artifact.manifest)
    found = exchange(data, score(model, data.matrix), surface, examinations, name, values)
    found |= {"doubts": doubts} | ({"chosen": None} if doubts else {})
    return measured_by(artifact, data) | about | found


def swept_weights(sweep: str, surface: Surface, num: int = NUM_WEIGHTS) -> tuple[str, list[float]]:
    """Return the outcome and the weights of a sweep such as "hide=-50..0".

    Raises:
        TabrankError: the sweep is malformed, or does not fit the surface's outcomes.
    """
    where, predicted = f"--sweep {sweep}", surface.predicted
    found = SWEEP.fullmatch(sweep)
    name, low, high = (found[1], float(found[2]), float(found[3])) if found else ("", 0.0, 0.0)
    if not -MOST <= low < high <= MOST:
        raise TabrankError(f"{where}: write an outcome and its two weights, such as hide=-50..0")
    if name not in (further := list(predicted)[1:]):
        raise TabrankError(
            f"{where}: {name!r} is no outcome that the model predicts beside {next(iter(predicted))}, its primary one"
            f"{did_you_mean(name, further)}; it predicts {', '.join(predicted)}, and the surface has "
            f"{', '.join(surface.outcomes)}. To sweep another, give it a weight in [weights], and fit again"
        )
    if high > 0 and surface.outcomes[name].bad:
        raise TabrankError(f"{where}: {high:g} rewards a bad outcome; end the sweep at 0")
    # Round the weights to what is printed, because people copy that.
    return name, [float(f"{value:.6g}") for value in np.linspace(low, high, num)]


def exchange(
    data: Dataset,
    shares: F32,
    surface: Surface,
    examinations: Sequence[Examination],
    name: str,
    values: Sequence[float],
    give: float = GIVE,
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


def cost_of_arm(
    arm: Arm, surface: Surface, models: Path, log: Path, history: Path | None = None
) -> dict[str, Any]:
    """Return the result of `cost` for an arm's rules on the rows of a log.

    The arm's model version scores the rows, and the arm's weights weigh its predictions.
    Impressions are counted by the field of the first spread or, without one, by the first category
    of candidates. Beside the result of `cost`, there are `arm`, `version`, `surface`,
    `rows_seen_in_training` and, if there are more than `MOST_ROWS` rows, `sampled_from`.

    Raises:
        TabrankError: the arm has no rules, has rules that do not fit the surface, or does not rank
            by a model; or its version or the log is invalid.
    """
    _check(arm, surface)
    categories = surface.fields["candidate"].items()
    shared = (f"candidate.{name}" for name, field in categories if field.type == "category")
    by = next((rule.spread.field for rule in arm.slate if rule.spread), next(shared, None))
    artifact = _artifact(arm, models, Features(Schema(surface)))
    named = (name for rule in arm.slate for name in rule.one.names if "." in name)
    fields = ["candidate.ends_ms", *named, *([by] if by else [])]
    data, about = read_rows(surface, history, log, ProgressLines("features"), fields, MOST_ROWS)
    del about["strings"]
    scales = {name: one.scale for name, one in surface.predicted.items()}
    shares = score(artifact.path, data.matrix)
    utility = Weighings(surface).of(arm.weights, artifact).utility(shares)
    known = dict(zip(artifact.outcomes, Examination.of(artifact.manifest), strict=True))
    examinations = [known.get(name, IGNORED) for name in scales]
    found = cost(data, arm.slate, utility, scales, examinations, log_odds(shares), by)
    return measured_by(artifact, data) | {"arm": arm.name} | about | found


def cost(
    data: Dataset,
    rules: Sequence[Rule],
    utility: F32,
    scales: Mapping[str, float],
    examinations: Sequence[Examination],
    odds: F64,
    by: str | None,
) -> dict[str, Any]:
    """Rank the rows with all rules, without each single rule and without any, and compare.

    The rows are ordered by `utility` `[N]` with `serve.ranking.order.ordered`. `scales` and
    `examinations` are as in `expected_amounts`, and `odds` `[N, columns]` are used for every
    outcome. `data.fields` must hold the fields that the rules name, `by`, and candidate.ends_ms.

    Returns plain data for JSON:

    * `rows`, `slates`, `rules` in words, `by`, and `about` of `training.evaluation.worth`.
    * `costs`: a list. The first entry compares all rules with none. Then each `rule`, numbered from
      1, is compared with the others alone. An entry holds

      * `text`: the rule or rules in words;
      * `outcomes`: by name the result of `Worth.compared`, or null if the rows do not support it;
      * `rankings_changed`: the share of rankings that change;
      * `displacement`: the mean number of places that a candidate moves;
      * for the order `with` the rule or rules, and for the one `without`: `unmet`, which counts the
        `places` where every remaining candidate broke a rule, and the share of `rankings` with such
        a place; and `impressions` of the first ten places by the value of the field `by`, which
        gives the share of the `largest` value and the `gini` coefficient over all values, or null
        without a field.
    """
    assert data.fields is not None
    values = data.fields["candidate"][by.partition(".")[2]] if by else np.zeros(len(data))
    slates, texts = Slates(data.outcomes[:, 0], data.slate, data.viewer), [rule.text for rule in rules]
    sets: dict[str, Sequence[Rule]] = {ALL: rules, NONE: []}
    sets |= {f"without rule {k + 1}": [*rules[:k], *rules[k + 1 :]] for k in range(len(rules))}
    place, num_unmet = _ranked(data, slates, sets, utility)
    orders = {name: -places.astype(np.float64) for name, places in place.items()}
    amounts = expected_amounts(data, orders, scales, examinations, [odds] * len(scales))
    sides = {
        name: {
            "unmet": {"places": int(unmet.sum()), "rankings": float((unmet > 0).mean())},
            "impressions": _concentration(values, place[name] < TOP),
        }
        for name, unmet in num_unmet.items()
    }
    costs = []
    _, *others = sets
    for number, (text, other) in enumerate(zip([ALL, *texts], others, strict=True)):
        moved = np.abs(place[ALL] - place[other])
        costs.append(
            {
                "rule": number or None,
                "text": text,
                "outcomes": {name: amounts.compared(name, ALL, other) for name in scales},
                "rankings_changed": float((slates.total(moved) > 0).mean()),
                "displacement": float(moved.mean()),
                "with": sides[ALL],
                "without": sides[other],
            }
        )
    found = {"rules": texts, "by": by, "about": amounts.about, "costs": costs}
    return {"rows": len(data), "slates": len(slates)} | found


def _ranked(
    data: Dataset, slates: Slates, sets: Mapping[str, Sequence[Rule]], utility: F32
) -> tuple[dict[str, I64], dict[str, I64]]:
    """Return for each set of rules the places of the rows `[N]`, and how many were unmet `[S]`."""
    fields = data.fields
    assert fields is not None
    standing = (fields["candidate"]["ends_ms"] <= data.ts_ms).astype(np.int8)
    utility = np.where(np.isfinite(utility) & (standing == LIVE), utility, np.float32(np.nan))
    popular = data.popular.astype(np.float64)
    # The service breaks ties by the order of the request, which the log lacks. The order shown
    # would favour whatever was shown first, so break ties at random.
    tie = np.random.default_rng(TIE_SEED).permutation(len(data))
    order = tie[ordered(slates.code[tie], utility[tie], popular[tie], standing[tie])]
    # The rows in the order in which they were shown, and each row's number in it.
    shown = np.lexsort((data.position, slates.code))
    number, ends = np.argsort(shown), np.cumsum(slates.size, dtype=np.int64).tolist()
    place = {name: np.empty(len(data), np.int64) for name in sets}
    num_unmet = {name: np.empty(len(slates), np.int64) for name in sets}
    progress = ProgressLines("rankings")
    for s, (begin, end) in enumerate(pairwise([0, *ends])):
        mine = shown[begin:end]
        owners = {owner: fields[owner][mine[:1]] for owner in fields.dtype.names or ()}
        owners["candidate"] = fields["candidate"][mine]
        facts = facts_of(owners, data.columns, data.matrix.rows(mine))
        # The request chose a pin's place, so that it is the same with any rules.
        pins = {} if data.pinned is None else {k: k for k in np.flatnonzero(data.pinned[mine]).tolist()}
        given = number[order[begin:end]] - begin, utility[mine], standing[mine], facts, end - begin
        for name, rules in sets.items():
            found = rerank(rules, pins, *given)
            place[name][mine[found.order]] = np.arange(end - begin)
            num_unmet[name][s] = found.num_unmet
        progress((s + 1) / len(slates))
    return place, num_unmet


def _concentration(values: NDArray[Any], is_first: Bools) -> dict[str, float] | None:
    """Return the largest share of impressions that one value has, and their Gini coefficient.

    The value 0 means missing, and such rows do not count.
    """
    known = values != 0
    names, code = np.unique(values[known], return_inverse=True)
    counts = np.sort(np.bincount(code[is_first[known]], minlength=len(names)))
    if not counts.any():
        return None
    rank = np.arange(1, len(counts) + 1)
    gini = 2 * (rank @ counts) / (len(counts) * counts.sum()) - (len(counts) + 1) / len(counts)
    return {"largest": float(counts[-1] / counts.sum()), "gini": float(gini)}


def _check(arm: Arm, surface: Surface) -> None:
    if not arm.slate:
        raise TabrankError(f"arm {arm.name} has no rules; declare them as its `slate` in cluster.yaml")
    if not arm.by_model:
        raise TabrankError(f"arm {arm.name} ranks by {arm.scorer}; name an arm that ranks by a model")
    for k, rule in enumerate(arm.slate):
        for path, error in rule.misfits(surface):
            raise TabrankError(f"arm {arm.name}: slate[{k}].{'.'.join(path)}: {error}")


def _artifact(arm: Arm, models: Path, features: Features) -> Artifact:
    """Return the version that ranks for an arm."""
    named = {CURRENT: None, CANARY: pointed(models, CANARY_POINTER)}
    version = named.get(arm.scorer, arm.scorer) or current(models)
    if version is None:
        raise TabrankError(f"arm {arm.name} ranks by {arm.scorer}, and {models} has no model; publish one")
    require(models, version)
    return load_for(models / version, features)
