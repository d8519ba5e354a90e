"""Arrange the places of one request: at each comes the best candidate that breaks no rule.

Candidates are numbered by rank, best first. Letters: C candidates, K rules, G groups of candidates
that are alike to all rules. The group NONE, at the end of each list `[G + 1]`, has those that no
rule counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice
from typing import NamedTuple

from serve.ranking.slate.limit import Quota
from serve.ranking.slate.spread import NONE, Spacing

Window = Spacing | Quota
# What takes a place for a rule, the code, the groups of this code, and the rule.
Claim = tuple[Callable[[int, int], int], int, list[int], int]
# Span of places that pins close to others: begin, end, the rule, and the groups.
Closing = tuple[int, int, int, list[int]]


class Arranged(NamedTuple):
    """Order of the candidates that are not pinned, and the rule for which some had to wait.

    `num_unmet` counts the places at which each candidate that was left broke a rule.
    """

    order: list[int]
    waited: dict[int, int]
    num_unmet: int


def arrange(
    windows: Mapping[int, Window], ends: Sequence[int], pins: Mapping[int, int], num_shown: int
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
    group_of, groups = _groups(list(codes.values()))
    claims, closings = _claims(windows, codes, groups, pins)
    # After these places no rule changes anything.
    last = min(ends[-1], num_shown, max((windows[k].end for k in codes), default=0))
    places: Iterator[int] = iter(range(last))
    others: Sequence[int] = range(ends[-1])
    is_taken = bytearray(ends[-1])
    if pins:
        places = iter([place for place in places if place not in pins])
        for rank in pins.values():
            is_taken[rank] = True
        others = [rank for rank in others if not is_taken[rank]]
    # [G + 1], the first place to which a candidate of the group may come, and the rule for that.
    free, by = [0] * len(claims), [0] * len(claims)
    order: list[int] = []
    waited: dict[int, int] = {}
    num_unmet, begin = 0, 0
    for end in ends:
        tier = others[bisect_left(others, begin) : bisect_left(others, end)]
        begin, new_ones, best = end, iter(tier), iter(tier)
        # Those who wait, by group, best first; only the first of a group can be the next one.
        held: dict[int, deque[int]] = {}
        # Each of these groups is in one of two heaps: by the place of its turn, or, from then on,
        # by its first candidate. At its turn it may have to wait again.
        turns: list[tuple[int, int]] = []
        ready: list[int] = []
        for place in islice(places, len(tier)):
            while closings and closings[0][0] <= place:
                _, until, k, closed = closings.pop(0)
                for group in closed:
                    if free[group] < until:
                        free[group], by[group] = until, k
            while turns and turns[0][0] <= place:
                group = heappop(turns)[1]
                if held[group]:
                    heappush(ready, held[group][0])
                else:
                    del held[group]
            while ready and free[group := group_of[ready[0]]] > place:
                heappop(ready)
                heappush(turns, (free[group], group))
            if ready:
                chosen = heappop(ready)
                held[group].popleft()
                heappush(turns, (place + 1, group))
            else:
                # No group of `held` may come now, so that a new one that may is the best.
                for chosen in new_ones:
                    group = group_of[chosen]
                    if free[group] <= place:
                        break
                    waited[chosen] = by[group]
                    if group not in held:
                        held[group] = deque()
                        heappush(turns, (free[group], group))
                    held[group].append(chosen)
                else:
                    num_unmet += 1
                    chosen = next(rank for rank in best if not is_taken[rank])
                    group = group_of[chosen]
                    held[group].popleft()
            is_taken[chosen] = True
            order.append(chosen)
            for take, code, alike, k in claims[group]:
                until = take(code, place)
                if until > place:
                    for other in alike:
                        if free[other] < until:
                            free[other], by[other] = until, k
    # Of a tier that is not shown in full, and of those after it.
    if len(order) < len(others):
        order += [rank for rank in others if not is_taken[rank]]
    return Arranged(order, waited, num_unmet)


def _groups(codes: Sequence[Sequence[int]]) -> tuple[Sequence[int], list[tuple[int, ...]]]:
    """Return the group of each candidate `[C]`, and the codes `[K]` of each group."""
    if len(codes) == 1:
        return codes[0], [(code,) for code in range(max(codes[0]) + 1)]
    number: dict[tuple[int, ...], int] = {(NONE,) * len(codes): NONE}
    group_of = [number.setdefault(alike, len(number) - 1) for alike in zip(*codes, strict=True)]
    return group_of, list(number)[1:]


def _claims(
    windows: Mapping[int, Window],
    codes: Mapping[int, Sequence[int]],
    groups: Sequence[tuple[int, ...]],
    pins: Mapping[int, int],
) -> tuple[list[list[Claim]], list[Closing]]:
    """Take the places of pins; return what each group claims at a place `[G + 1]`, and closings."""
    claims: list[list[Claim]] = [[] for _ in range(len(groups) + 1)]
    closings: list[Closing] = []
    for at, (k, of_rule) in enumerate(codes.items()):
        pinned: defaultdict[int, list[int]] = defaultdict(list)
        for place in sorted(pins):
            pinned[of_rule[pins[place]]].append(place)
        pinned.pop(NONE, None)
        spans = list(windows[k].pin(pinned))
        together: defaultdict[int, list[int]] = defaultdict(list)
        for group, alike in enumerate(groups):
            if (code := alike[at]) != NONE:
                together[code].append(group)
                claims[group].append((windows[k].take, code, together[code], k))
        closings += [(begin, end, k, together[code]) for begin, end, code in spans]
    return claims, sorted(closings)
