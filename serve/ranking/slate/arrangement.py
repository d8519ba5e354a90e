"""Arrange the places of one request: at each comes the best candidate that breaks no rule.

Letters: C candidates of the request, K rules, G groups of candidates that are alike to all rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from serve.config.slate import Limit, Spread
from serve.ranking.slate.limit import Quota
from serve.ranking.slate.spread import Spacing

Take = Callable[[Hashable, int], int]
NEVER = 1 << 30


class Arranged(NamedTuple):
    """Order of the candidates that are not pinned, and the rule for which some had to wait.

    `num_unmet` counts the places at which each candidate that was left broke a rule.
    """

    order: list[int]
    waited: dict[int, int]
    num_unmet: int


def arrange(
    tiers: Sequence[Sequence[int]],
    rules: Sequence[Spread | Limit],
    keys: Sequence[Sequence[Hashable]],
    pins: Mapping[int, int],
    num_shown: int,
) -> Arranged:
    """Fill the places shown: at each comes the best candidate that breaks no rule.

    If each that is left breaks one, the best one comes. The rest follows in its order.

    Args:
        tiers: Candidates, best first, but for pinned ones; those of a tier come before the next.
        rules: `[K]`, one at least.
        keys: `[K, C]`; a rule counts candidates of equal keys together, and None not at all.
        pins: Candidates by place, from 0.
        num_shown: Number of places that are shown.
    """
    # After these places no rule changes anything.
    last = max(rule.first if isinstance(rule, Limit) else NEVER for rule in rules)
    places = iter([place for place in range(min(len(keys[0]), num_shown, last)) if place not in pins])
    # Candidates that are alike to all rules form a group; a rule counts some groups together.
    number: dict[Any, int] = {}
    alike: Sequence[Any] = keys[0] if len(keys) == 1 else list(zip(*keys, strict=True))
    group_of = [number.setdefault(key, len(number)) for key in alike]
    # [G], the first place to which a candidate of the group may come.
    free = [0] * len(number)
    # [G], the rule for which it must wait until then.
    by = [0] * len(number)
    # [G], what takes its places for a rule, the key, and the groups that are counted together.
    takes: list[list[tuple[Take, Hashable, list[int], int]]] = [[] for _ in number]
    # Spans of places that are closed to others from the start: begin, end, rule, and the groups.
    closing: list[tuple[int, int, int, list[int]]] = []
    for k, rule in enumerate(rules):
        pinned: dict[Hashable, list[int]] = {}
        for place in sorted(pins):
            if (key := keys[k][pins[place]]) is not None:
                pinned.setdefault(key, []).append(place)
        counts = Spacing(rule, pinned) if isinstance(rule, Spread) else Quota(rule, pinned)
        together: dict[Hashable, list[int]] = {}
        for group, key in enumerate(number if len(keys) == 1 else [each[k] for each in number]):
            if key is not None:
                together.setdefault(key, []).append(group)
                takes[group].append((counts.take, key, together[key], k))
        closing += [(begin, end, k, together.get(key, [])) for begin, end, key in counts.closed()]
    closing.sort()
    order: list[int] = []
    waited: dict[int, int] = {}
    num_unmet = 0
    for tier in tiers:
        mine, taken = [group_of[i] for i in tier], bytearray(len(tier))
        # Those who wait, by group, best first; only the first of a group can be the next one.
        held: dict[int, deque[int]] = {}
        # The place at which the first of them may come, and the best candidate that is left.
        soonest, best = NEVER, 0
        new_ones = iter(range(len(tier)))
        for place in islice(places, len(tier)):
            while closing and closing[0][0] <= place:
                _, until, k, others = closing.pop(0)
                for group in others:
                    if free[group] < until:
                        free[group], by[group] = until, k
            chosen = NEVER
            if soonest <= place:
                soonest = NEVER
                for group, queue in held.items():
                    if free[group] <= place:
                        chosen, soonest = min(chosen, queue[0]), place
                    elif free[group] < soonest:
                        soonest = free[group]
            if chosen == NEVER:
                # No group of `held` may come now, so that a new one that may is the best.
                for new in new_ones:
                    group = mine[new]
                    if free[group] <= place:
                        chosen = new
                        break
                    held.setdefault(group, deque()).append(new)
                    waited[tier[new]] = by[group]
                    soonest = min(soonest, free[group])
                else:
                    num_unmet += 1
                    while taken[best]:
                        best += 1
                    chosen = best
            taken[chosen] = True
            order.append(tier[chosen])
            group = mine[chosen]
            if held and group in held:
                held[group].popleft()
                if not held[group]:
                    del held[group]
            for take, key, others, k in takes[group]:
                until = take(key, place)
                if until > place:
                    for other in others:
                        if free[other] < until:
                            free[other], by[other] = until, k
        order += [i for i, is_taken in zip(tier, taken, strict=True) if not is_taken]
    return Arranged(order, waited, num_unmet)
