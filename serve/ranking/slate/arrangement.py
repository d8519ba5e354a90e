"""Arrange the places of one request: at each comes the best candidate that breaks no rule.

Candidates are numbered by rank, best first. Letters: C candidates, K rules, G groups of candidates
that are alike to all rules.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from serve.ranking.slate.limit import Quota
from serve.ranking.slate.spread import NEVER, NONE, Spacing

Window = Spacing | Quota


class Arranged(NamedTuple):
    """Order of the candidates that are not pinned, and the rule for which some had to wait.

    `num_unmet` counts the places at which each candidate that was left broke a rule.
    """

    order: list[int]
    waited: dict[int, int]
    num_unmet: int


def arrange(
    windows: Mapping[int, Window],
    ends: Sequence[int],
    pins: Mapping[int, int],
    num_shown: int,
) -> Arranged:
    """Fill the places shown: at each comes the best candidate that breaks no rule.

    If each that is left breaks one, the best one comes. The rest follows in its order.

    Args:
        windows: The rules by number.
        ends: Rank at which each tier ends; all of a tier come before the next one.
        pins: Candidates by place, from 0.
        num_shown: Number of places that are shown.
    """
    # A rule counts candidates of equal codes together, and NONE not at all.
    # Of rules without codes no candidate can break one.
    codes = {k: of_rule for k, window in windows.items() if (of_rule := window.codes())}
    # After these places no rule changes anything.
    last = min(ends[-1], num_shown, max((windows[k].end for k in codes), default=0))
    places = iter([place for place in range(last) if place not in pins] if pins else range(last))
    group_of, groups = _groups(list(codes.values()))
    # [G + 1], the first place to which a candidate of the group may come, and the rule for that.
    # The last group is of those that no rule counts.
    free, by = [0] * (len(groups) + 1), [0] * (len(groups) + 1)
    # [G + 1], what takes its places for a rule, the code, the groups of this code, and the rule.
    takes: list[list[tuple[Callable[[int, int], int], int, list[int], int]]] = [[] for _ in free]
    # Spans of places that are closed to others from the start: begin, end, rule, and the groups.
    closing: list[tuple[int, int, int, list[int]]] = []
    for at, (k, of_rule) in enumerate(codes.items()):
        pinned: dict[int, list[int]] = {}
        for place in sorted(pins):
            pinned.setdefault(of_rule[pins[place]], []).append(place)
        pinned.pop(NONE, None)
        spans = list(windows[k].pin(pinned))
        together: dict[int, list[int]] = {}
        for group, alike in enumerate(groups):
            if (code := alike[at]) != NONE:
                together.setdefault(code, []).append(group)
                takes[group].append((windows[k].take, code, together[code], k))
        closing += [(begin, end, k, together.get(code, [])) for begin, end, code in spans]
    closing.sort()
    order: list[int] = []
    waited: dict[int, int] = {}
    num_unmet, begin = 0, 0
    is_taken = bytearray(ends[-1])
    ranks: Sequence[int] = range(ends[-1])
    if pins:
        for rank in pins.values():
            is_taken[rank] = True
        ranks = [rank for rank in ranks if not is_taken[rank]]
    for end in ends:
        # Those who wait, by group, best first; only the first of a group can be the next one.
        held: dict[int, deque[int]] = {}
        # The place at which the first of them may come, and the best candidate that is left.
        soonest, best = NEVER, begin
        tier = ranks[bisect_left(ranks, begin) : bisect_left(ranks, end)]
        new_ones = iter(tier)
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
                    if free[group] > place:
                        soonest = min(soonest, free[group])
                    elif queue[0] < chosen:
                        chosen = queue[0]
                if chosen < NEVER:
                    soonest = place
            if chosen == NEVER:
                # No group of `held` may come now, so that a new one that may is the best.
                for new in new_ones:
                    group = group_of[new]
                    if free[group] <= place:
                        chosen = new
                        break
                    held.setdefault(group, deque()).append(new)
                    waited[new] = by[group]
                    soonest = min(soonest, free[group])
                else:
                    num_unmet += 1
                    while is_taken[best]:
                        best += 1
                    chosen = best
            is_taken[chosen] = True
            order.append(chosen)
            group = group_of[chosen]
            if group == NONE:
                continue
            if group in held:
                held[group].popleft()
                if not held[group]:
                    del held[group]
            for take, code, others, k in takes[group]:
                until = take(code, place)
                if until > place:
                    for other in others:
                        if free[other] < until:
                            free[other], by[other] = until, k
        begin = end
    # Of a tier that is not shown in full, and of those after it.
    if len(order) < len(ranks):
        order += [rank for rank in ranks if not is_taken[rank]]
    return Arranged(order, waited, num_unmet)


def _groups(codes: Sequence[Sequence[int]]) -> tuple[Sequence[int], list[tuple[int, ...]]]:
    """Return the group of each candidate `[C]`, and the codes `[K]` of each group."""
    if len(codes) == 1:
        return codes[0], [(code,) for code in range(max(codes[0]) + 1)]
    number: dict[tuple[int, ...], int] = {(NONE,) * len(codes): NONE}
    group_of = [number.setdefault(alike, len(number) - 1) for alike in zip(*codes, strict=True)]
    return group_of, list(number)[1:]
