"""Cost of an arm's rules: a log ranked again with all rules, without each one, and without any.

Letters: N rows, S rankings, C candidates of one ranking, V sets of rules.
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

# Rows that are ranked again, which bounds the memory (about 1 GiB) and the time (minutes). Their
# intervals are narrow.
MOST_ROWS = 1_000_000
# Names of the sets of rules that each one is compared in.
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

    The arm's version scores the rows, and the arm's weights weigh them. `kept` tells by their ids
    which requests are ranked again: all of them, or as many, evenly over time, as have `most_rows`.
    Impressions are counted by the field of the first spread, or else the first category of
    candidates. The result also holds `arm`, `version`, `units` by outcome, `surface`,
    `rows_seen_in_training`, and `left_out`: the `rankings` beyond these rows, or of which nothing
    is known, and the `candidates` of the others that are no rows, because they were unknown or it
    is not known what followed.

    Raises:
        TabrankError: the arm has no rules, or some that do not fit the surface, or orders without a
            model; or its version or the log is invalid.
    """
    _check(arm, surface)
    features, categories = Features(Schema(surface)), surface.fields["candidate"].items()
    shared = (f"candidate.{name}" for name, field in categories if field.type == "category")
    by = next((rule.spread.field for rule in arm.slate if rule.spread), next(shared, None))
    artifact = _artifact(arm, models, features)
    past, rows = read_log(history, surface) if history else None, read_log(log, surface)
    # How many slates each exposure stands for, and the candidates of all of them.
    times = rows.exposures["one_in"].to_numpy()
    num_shown = times * pc.list_value_length(rows.exposures["candidates"]).to_numpy()
    asked = np.flatnonzero(kept(rows.exposures["request_id"].combine_chunks()))
    plan = DatasetPlan(
        features.schema,
        rows,
        history=past,
        weights=drawn_weights(log, rows),
        kept=kept_evenly(num_shown, most_rows, asked),
        fields=["candidate.ends_ms", *_named(arm.slate), *([by] if by else [])],
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
    """Rank the rows with all rules, without each one and without any, and compare.

    The order is that of `serve.ranking.order.ordered` by `utility` `[N]`;
    `scales` and `examinations` are those of `expected_amounts`, and `odds` `[N, columns]` those of
    each outcome. `data.fields` has the fields that the rules name, `by`, and candidate.ends_ms.
    Return plain data for JSON:

    * `rows`, `slates`, `rules` (in words), `by`, `about` of `training.evaluation.worth`.
    * `costs`: first of all rules against none, then of each `rule`, numbered from 1, against the
      others alone. Each has its `text`; `outcomes`, by name what `Worth.compared` tells, or null
      without support by the rows; `rankings_changed`, their share; `displacement`, the mean number
      of places that a candidate moves; and of the order `with` the rule or rules and `without`,
      `unmet`: the `places` at which each candidate that was left broke a rule, and the share of
      `rankings` that have one; and `impressions` of the first ten places by the value of a field:
      the share of the `largest` and the `gini` over all values in the rows, or null without any.
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
    """Return by the name of a set of rules the places of rows `[N]`, and of unmet ones `[S]`."""
    fields = data.fields
    assert fields is not None
    standing = (fields["candidate"]["ends_ms"] <= data.ts_ms).astype(np.int8)
    utility = np.where(np.isfinite(utility) & (standing == LIVE), utility, np.float32(np.nan))
    popular = data.popular.astype(np.float64)
    # Ties keep the order of the request, which the log lacks: the order shown would tell too much.
    tie = np.random.default_rng(TIE_SEED).permutation(len(data))
    order = tie[ordered(slates.code[tie], utility[tie], popular[tie], standing[tie])]
    # The rows as they were shown, and the number of each among them.
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
        # A pin is the request's, so its place is the same whatever the rules.
        pins = {} if data.pinned is None else {k: k for k in np.flatnonzero(data.pinned[mine]).tolist()}
        given = number[order[begin:end]] - begin, utility[mine], standing[mine], facts, end - begin
        for name, rules in sets.items():
            found = rerank(rules, pins, *given)
            place[name][mine[found.order]] = np.arange(end - begin)
            num_unmet[name][s] = found.num_unmet
        progress((s + 1) / len(slates))
    return place, num_unmet


def _concentration(values: NDArray[Any], is_first: Bools) -> dict[str, float] | None:
    """Return the largest share of impressions that one value has, and the Gini coefficient.

    A missing value is 0, and its rows do not count.
    """
    known = values != 0
    names, code = np.unique(values[known], return_inverse=True)
    counts = np.sort(np.bincount(code[is_first[known]], minlength=len(names)))
    if not counts.any():
        return None
    rank = np.arange(1, len(counts) + 1)
    gini = 2 * (rank @ counts) / (len(counts) * counts.sum()) - (len(counts) + 1) / len(counts)
    return {"largest": float(counts[-1] / counts.sum()), "gini": float(gini)}


def _named(rules: Sequence[Rule]) -> list[str]:
    """Return the fields that rules name."""
    wheres = [one.where for rule in rules if (one := rule.boost or rule.limit)]
    fields = [rule.spread.field for rule in rules if rule.spread]
    return fields + [name for where in wheres for name in where if "." in name]


def _check(arm: Arm, surface: Surface) -> None:
    if not arm.slate:
        raise TabrankError(f"arm {arm.name} has no rules; give it a `slate` in cluster.yaml")
    if not arm.by_model:
        raise TabrankError(
            f"arm {arm.name} ranks by {arm.scorer}; name an arm of a model, whose utility a log gives again"
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
