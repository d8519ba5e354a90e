"""Re-rank: the rules of an arm and the pins of a request, after the order by utility.

Each rule has a module of its own in this folder: pure functions over the arrays of one request.
What evaluates a model on a log orders by score alone, without rules. Shapes: C candidates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from serve.config.slate import Limit, Rule, Spread
from serve.features.slots import F32, I64, Bools
from serve.ranking.order import UNKNOWN, Standings
from serve.ranking.query import Slate
from serve.ranking.slate.arrangement import arrange
from serve.ranking.slate.boost import boosted
from serve.ranking.slate.pins import pinned
from serve.ranking.slate.spread import counted
from serve.ranking.slate.where import Facts, meeting


class Reranked(NamedTuple):
    """Order `[C]` after rules and pins, and how it came about.

    `why` has the number of each rule that moved a candidate, in the order of the rules.
    `num_unmet` counts the places at which each candidate that was left broke a rule.
    """

    order: I64
    why: Mapping[int, list[int]]
    num_unmet: int


def ruled(slate: Slate, standing: Standings, facts: Facts) -> Slate:
    """Return the slate with its order changed by the rules of its arm and the pins of its query."""
    query = slate.query
    num_shown = min(query.limit, len(slate.order))
    found = rerank(query.arm.slate, query.pins, slate.order, slate.score, standing, facts, num_shown)
    place_before = np.argsort(slate.order)[found.order]
    return msgspec.structs.replace(
        slate, order=found.order, place_before=place_before, why=found.why, num_unmet=found.num_unmet
    )


def rerank(
    rules: Sequence[Rule],
    pins: Mapping[int, int],
    order: I64,
    score: F32,
    standing: Standings,
    facts: Facts,
    num_shown: int,
) -> Reranked:
    """Return the order after boosts, and then with pins, spreads and limits at the places shown.

    Boosts move scored candidates alone. Live candidates come before ended ones, and these before
    unknown ones, under every rule but a pin.

    Args:
        rules: Those of the arm.
        pins: Candidates by place, from 0.
        order: `[C]`, by utility, or by what replaces it.
        score: `[C]`, NaN where unscored.
        standing: `[C]`.
        facts: Values of fields and features of the candidates.
        num_shown: Number of places that are shown.
    """
    why: dict[int, list[int]] = {}
    scored = order[~np.isnan(score[order])]
    if boosts := {k: rule.boost for k, rule in enumerate(rules) if rule.boost and len(scored)}:
        met = [meeting(boost.where, facts, len(order)) for boost in boosts.values()]
        why = _moved(dict(zip(boosts, met, strict=True)), scored)
        scored = boosted(score, scored, list(boosts.values()), met)
        order = np.concatenate([scored, order[len(scored) :]])
    others, num_unmet = order.tolist(), 0
    if pins:
        at_places = set(pins.values())
        others = [i for i in others if i not in at_places]
    if kept := {k: one for k, rule in enumerate(rules) if (one := rule.spread or rule.limit)}:
        tiers = [others]
        if standing.any():
            tiers = [[i for i in others if standing[i] == tier] for tier in range(UNKNOWN + 1)]
        keys = [_keys(rule, facts, len(order)) for rule in kept.values()]
        others, waited, num_unmet = arrange(tiers, list(kept.values()), keys, pins, num_shown)
        numbers = list(kept)
        for i, k in waited.items():
            why.setdefault(i, []).append(numbers[k])
    return Reranked(np.array(pinned(others, pins), np.int64), why, num_unmet)


def _moved(met: Mapping[int, Bools], scored: I64) -> dict[int, list[int]]:
    """Return the numbers of the boosts whose conditions a scored candidate meets."""
    why: dict[int, list[int]] = {}
    for k, here in met.items():
        for i in scored[here[scored]].tolist():
            why.setdefault(i, []).append(k)
    return why


def _keys(rule: Spread | Limit, facts: Facts, num: int) -> list[Hashable]:
    """Return what the rule counts together `[C]`, None for what it does not count."""
    if isinstance(rule, Spread):
        return counted(facts(rule.field).tolist(), rule)
    return [here or None for here in meeting(rule.where, facts, num).tolist()]
