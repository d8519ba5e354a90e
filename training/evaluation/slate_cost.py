"""Measure what an arm's slate rules cost, by ranking a log again with and without them.

The log is ranked with all rules, without each single rule, and without any. In shapes, N is the
number of rows, S of rankings and C of one ranking's candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.config.settings import CANARY, CURRENT, Arm
from serve.config.slate import Rule
from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.slots import F32, F64, I64, Bools
from serve.features.surface import Surface
from serve.log.reader import read_log
from serve.model.artifact import CANARY as CANARY_POINTER
from serve.model.artifact import Artifact, current, pointed, require
from serve.model.compatibility import load_for
from serve.ranking.exploration import log_weight as log_odds
from serve.ranking.order import LIVE, ordered
from serve.ranking.slate import rerank
from serve.ranking.slate.where import facts_of
from serve.ranking.utility import Weighings
from training.data.dataset import Dataset, DatasetPlan, kept_evenly
from training.data.draws import drawn_weights
from training.evaluation.evaluate import measured_by, score
from training.evaluation.slates import TIE_SEED, Slates
from training.evaluation.sweep import TOP
from training.evaluation.worth import expected_amounts
from training.examination.examination import IGNORED, Examination
from training.terminal import ProgressLines

# At most this many rows are ranked again, which bounds the memory (about 1 GiB) and the time
# (minutes). This is enough for narrow intervals.
MOST_ROWS = 1_000_000
# The names of two sets of rules.
ALL, NONE = "all rules", "no rules"


def cost_of_arm(
    arm: Arm,
    surface: Surface,
    models: Path,
    log: Path,
    *,
    history: Path | None = None,
    kept: Callable[[pa.Array], Bools] = lambda ids: np.ones(len(ids), bool),
    most_rows: int = MOST_ROWS,
) -> dict[str, Any]:
    """Return the result of `cost` for an arm's rules on the rows of a log.

    The arm's model version scores the rows, and the arm's weights weigh its predictions.

    Args:
        kept: says for request ids which requests may be ranked again.
        most_rows: if these requests have more rows, only some requests, evenly over time, are used.

    Impressions are counted by the field of the first spread or, without one, by the first category
    of candidates. Beside the result of `cost`, there are `arm`, `version`, `surface`, `units` by
    outcome, `rows_seen_in_training`, and `left_out`. The latter counts the `rankings` that were not
    used, because there are too many rows or nothing is known of them, and the `candidates` of the
    others that were left out, because they were unknown or nobody knows what followed.

    Raises:
        TabrankError: the arm has no rules, has rules that do not fit the surface, or does not rank
            by a model; or its version or the log is invalid.
    """
    _check(arm, surface)
    features, categories = Features(Schema(surface)), surface.fields["candidate"].items()
    shared = (f"candidate.{name}" for name, field in categories if field.type == "category")
    by = next((rule.spread.field for rule in arm.slate if rule.spread), next(shared, None))
    named = (name for rule in arm.slate for name in rule.one.names)
    artifact = _artifact(arm, models, features)
    past, rows = read_log(history, surface) if history else None, read_log(log, surface)
    # How many slates each exposure represents, and the number of their candidates.
    times = rows.exposures["one_in"].to_numpy()
    num_shown = times * pc.list_value_length(rows.exposures["candidates"]).to_numpy()
    asked = np.flatnonzero(kept(rows.exposures["request_id"].combine_chunks()))
    plan = DatasetPlan(
        features.schema,
        rows,
        history=past,
        weights=drawn_weights(log, rows),
        kept=kept_evenly(num_shown, most_rows, asked),
        fields=["candidate.ends_ms", *(name for name in named if "." in name), *([by] if by else [])],
    )
    data = plan.whole(ProgressLines("features"))
    scales = {name: one.scale for name, one in surface.predicted.items()}
    shares = score(artifact.path, data.matrix)
    utility = Weighings(surface).of(arm.weights, artifact).utility(shares)
    known = dict(zip(artifact.outcomes, Examination.of(artifact.manifest), strict=True))
    ranked = np.unique(np.repeat(np.arange(len(times)), times)[data.slate])
    left_out = {
        "rankings": int(times[asked].sum() - times[ranked].sum()),
        "candidates": int(num_shown[ranked].sum()) - len(data),
    }
    about = measured_by(artifact, data) | {"arm": arm.name, "left_out": left_out}
    about |= {"units": {key: "min" if one.until else one.unit for key, one in surface.predicted.items()}}
    examinations = [known.get(name, IGNORED) for name in scales]
    return about | cost(data, arm.slate, utility, scales, examinations, log_odds(shares), by)


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
        raise TabrankError(
            f"arm {arm.name} ranks by {arm.scorer} and not by a model, so its scores cannot be computed from a log; "
            "name an arm that ranks by a model"
        )
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
