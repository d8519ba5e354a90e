"""Re-rank: the rules of an arm and the pins of a request, after the order by utility.

Each rule has a module of its own in this folder, with pure functions over the arrays of one
request. The evaluation of a model on a log orders by score alone, without rules.

Shapes: C candidates.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serve.config.slate import Limit, Rule, Spread
from serve.features.slots import F32, I64
from serve.ranking.order import Standings
from serve.ranking.query import Slate
from serve.ranking.slate.arrangement import Window, arrange
from serve.ranking.slate.boost import boosted
from serve.ranking.slate.limit import Quota
from serve.ranking.slate.pins import pinned
from serve.ranking.slate.spread import Spacing
from serve.ranking.slate.where import Facts, meeting

# What counts a rule over the candidates of one request, in an order.
WINDOWS: Mapping[type, Callable[[Any, Facts, I64], Window]] = {Spread: Spacing.of, Limit: Quota.of}


class Reranked(NamedTuple):
    """Order `[C]` after rules and pins, and how it came about.

    `why` has, by candidate, the numbers of the rules that moved it, in the order of the rules. They
    are the boosts whose conditions it meets, if the boosts alone change its place, and the spread
    or limit for which it had to wait.
    `num_unmet` counts the places at which every candidate that was left broke a rule.
    """

    order: I64
    why: Mapping[int, list[int]]
    num_unmet: int


def ruled(slate: Slate, standing: Standings, facts: Facts) -> Slate:
    """Return the slate after the rules of its arm and the pins of its query changed its order."""
    query = slate.query
    given = slate.order, slate.score, standing, facts, query.limit
    found = rerank(query.arm.slate, query.pins, *given, tells=bool(query.explain))
    if found.order is slate.order and not query.explain:
        return slate
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
    *,
    tells: bool = False,
) -> Reranked:
    """Return the order after boosts, and then after pins, spreads and limits at the shown places.

    Boosts move only scored candidates. Live candidates come before ended ones, and these before
    unknown ones; only a pin changes that.

    Args:
        rules: The rules of the arm.
        pins: Pinned candidates by place, from 0.
        order: The candidates `[C]` by utility, or by what replaces it.
        score: The utilities `[C]`, NaN where unscored.
        standing: The standing `[C]` of each candidate.
        facts: Returns the values of a field or feature of the candidates.
        num_shown: How many places are shown at most.
        tells: True if `why` is wanted, which takes time.
    """
    why: defaultdict[int, list[int]] = defaultdict(list)
    boosts = {k: rule.boost for k, rule in enumerate(rules) if rule.boost}
    if boosts and (is_scored := score == score).any():
        met = [meeting(boost.where, facts, len(order)) for boost in boosts.values()]
        given, order = order, boosted(score, order, list(boosts.values()), met)
        # A boost that leaves a candidate at its place did not move it, even if another rule does.
        moved = order[order != given]
        for k, here in zip(boosts, met, strict=True):
            for i in moved[(here & is_scored)[moved]].tolist() if tells else ():
                why[i].append(k)
    kept = ((k, rule.one) for k, rule in enumerate(rules) if not rule.boost)
    windows = {k: WINDOWS[type(rule)](rule, facts, order) for k, rule in kept}
    if not pins and all(window.is_kept(num_shown) for window in windows.values()):
        return Reranked(order, why, 0)
    rank_of = np.argsort(order) if pins else order
    ranks = {place: int(rank_of[i]) for place, i in pins.items()}
    # Where the candidates of each standing end: live ones first, then ended and unknown ones.
    ends = np.cumsum(np.bincount(standing)).tolist()
    found = arrange(windows, ends, ranks, num_shown)
    for rank, k in found.waited.items() if tells else ():
        insort(why[int(order[rank])], k)
    return Reranked(order[pinned(found.order, ranks)], why, found.num_unmet)
