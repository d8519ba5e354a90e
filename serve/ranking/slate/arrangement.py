"""Arrange the places of one request: each place gets the best candidate that breaks no rule there.

Candidates are numbered by rank, best first. A rule gives the same *code* to candidates that it
counts together, such as the rooms of one host, and NONE to those that it does not count. No two
rules share a code.

Letters: C candidates, K rules, N codes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import compress, islice
from typing import NamedTuple

from serve.ranking.slate.limit import Quota
from serve.ranking.slate.spread import NONE, Spacing

Window = Spacing | Quota


class Arranged(NamedTuple):
    """Order of the candidates that are not pinned, and how it came about.

    `waited` has, by candidate, the rule for which it had to wait.
    `num_unmet` counts the places at which every candidate that was left broke a rule.
    """

    order: list[int]
    waited: dict[int, int]
    num_unmet: int


class Codes(NamedTuple):
    """Codes of the rules that a candidate can break.

    Attributes:
        of: The codes `[C, K]` of each candidate.
        rule: The rule `[N]` of each code.
        take: A function `[N]` for each code. It takes a place for a candidate with the code, and
            returns the place before which no other candidate with the code may come.
        closed: Spans of places at which, because of pins, no candidate with a code may come: begin,
            end (exclusive) and code, sorted.
        end: The place from which on no rule changes anything.
    """

    of: list[tuple[int, ...]]
    rule: list[int]
    take: list[Callable[[int, int], int]]
    closed: list[tuple[int, int, int]]
    end: int


def arrange(
    windows: Mapping[int, Window], ends: Sequence[int], pins: Mapping[int, int], num_shown: int
) -> Arranged:
    """Fill each shown place with the best candidate that breaks no rule there.

    If every candidate that is left breaks a rule, the best one comes. Candidates that are not shown
    follow in their order. Example: ranks 0, 1 and 2, where 0 and 1 are rooms of one host, and a
    spread allows one room of a host in two places. The order is then 0, 2, 1.

    Args:
        windows: The rules by number.
        ends: Rank at which each tier ends; a whole tier comes before the next one.
        pins: Pinned candidates by place, from 0.
        num_shown: Number of places that are shown.
    """
    codes_of, rule_of, take_of, closed, end_of_rules = _codes(windows, pins)
    last = min(ends[-1], num_shown, end_of_rules)
    places = iter([place for place in range(last) if place not in pins] if pins else range(last))
    is_left = bytearray(b"\1") * ends[-1]
    for rank in pins.values():
        is_left[rank] = False
    others = list(compress(range(ends[-1]), is_left))
    # [N + 1], the place from which on each code may come; the last one stands for NONE.
    free = [0] * (len(take_of) + 1)
    order: list[int] = []
    waited: dict[int, int] = {}
    num_unmet = 0
    for end in ends:
        tier = others[len(order) : bisect_left(others, end)]
        # Candidates that were not looked at yet, the best one last.
        unseen, best = tier[::-1], iter(tier)
        # Three heaps. `held` has the candidates that wait, by code. `turns` has the place at which
        # each of these codes may come again. `ready` has the first candidate of each code whose
        # turn has come. Entries may be outdated.
        held: defaultdict[int, list[int]] = defaultdict(list)
        turns: list[tuple[int, int]] = []
        ready: list[tuple[int, int]] = []
        for place in islice(places, len(tier)):
            while closed and closed[0][0] <= place:
                _, until, code = closed.pop(0)
                free[code] = max(free[code], until)
                heappush(turns, (free[code], code))
            while turns and turns[0][0] <= place:
                code = heappop(turns)[1]
                if held[code]:
                    heappush(ready, (held[code][0], code))
            while True:
                if ready:
                    chosen, code = heappop(ready)
                    queue = held[code]
                    if free[code] > place or not queue or queue[0] != chosen:
                        continue
                    heappop(queue)
                    if queue:
                        heappush(ready, (queue[0], code))
                elif unseen:
                    chosen = unseen.pop()
                else:
                    num_unmet += 1
                    chosen = next(rank for rank in best if is_left[rank])
                    heappop(held[waited[chosen]])
                    break
                for code in codes_of[chosen]:
                    if free[code] > place:
                        break
                else:
                    break
                waited[chosen] = code
                if not held[code] and free[code] < last:
                    heappush(turns, (free[code], code))
                heappush(held[code], chosen)
            is_left[chosen] = False
            order.append(chosen)
            for code in codes_of[chosen]:
                if code != NONE and (until := take_of[code](code, place)) > free[code]:
                    free[code] = until
                    if code in held:
                        heappush(turns, (until, code))
    # The candidates that are not shown follow: those left of the last tier, and later tiers.
    order += compress(range(ends[-1]), is_left)
    return Arranged(order, {rank: rule_of[code] for rank, code in waited.items()}, num_unmet)


def _codes(windows: Mapping[int, Window], pins: Mapping[int, int]) -> Codes:
    """Return the codes of the rules, and let the rules count the pins."""
    by_rule: list[list[int]] = []
    rule_of: list[int] = []
    take_of: list[Callable[[int, int], int]] = []
    closed, end = list[tuple[int, int, int]](), 0
    for k, window in windows.items():
        if not (codes := window.codes(len(rule_of))):
            continue
        pinned: defaultdict[int, list[int]] = defaultdict(list)
        for place in sorted(pins):
            pinned[codes[pins[place]]].append(place)
        pinned.pop(NONE, None)
        closed += window.pin(pinned)
        num = max(codes) + 1 - len(rule_of)
        rule_of += [k] * num
        take_of += [window.take] * num
        by_rule.append(codes)
        end = max(end, window.end)
    return Codes(list(zip(*by_rule, strict=True)), rule_of, take_of, sorted(closed), end)
