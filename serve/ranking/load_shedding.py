"""The ladder: how much of a request is done under load, so that the p99 holds.

One number, the level, moves down and up with the latency. From 0 to 1 answers are `partial`: ever fewer of their
candidates, those that are best known, go to the model. From 1 to 2 ever more are `fallback`: the popular order at once.
What waited too long to be seen at all gets the popular order whatever the level. What comes behind more work than can
be done in time is refused.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from statistics import fmean

PARTIAL, FALLBACK = 1.0, 2.0  # where each ends
FEWEST = 0.1  # of its candidates, that a partial answer has scored
# Of the deadline. What was scored may take so long on average; its p99 is about twice that.
SCORED = 0.45
# How long a request may have waited to be seen, and still be scored, which takes four turns of the loop. Until the knee
# a turn takes up to 12 ms, in an overload 40: nothing tells the two better apart.
HURRY = 0.15
# How much work, in CPU time, may go before a request in its turn and the one before, that is still answered. Not how
# long it waited: where others take the CPU, few wait, and the popular order for them costs little.
TOO_MUCH = 0.15
HICCUP = 2.0  # times as long, while there is a rung below that is not tried yet: one long turn is no overload
# A burst or a hiccup passes by itself, a queue that stands does not: what counts is the least of the last ticks, as in
# CoDel (Nichols and Jacobson 2012).
TICK_S, TICKS = 0.05, 3
DOWN_PER_S = 8.0  # levels, where the latency is twice what is held
UP_PER_S = 0.7  # levels, where there is no load: from the end back to full in 3 s


class Ladder:
    """Sees how long requests take and wait; says what the next one gets."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.level = 0.0
        self.enabled = True
        self._draw = draw
        self._scored_s: list[float] = []  # since the last tick
        self._pressures: deque[float] = deque(maxlen=TICKS)

    def scored(self, latency_s: float) -> None:
        """A ranking was answered with its scores after so long."""
        self._scored_s.append(latency_s)

    def late(self, after_s: float, deadline_s: float) -> None:
        """A ranking was answered without its scores, for which it had so long.

        That they take longer tells of no load where it had less than they may take: callers that give hardly any time
        would hide what the others wait.
        """
        if after_s >= SCORED * deadline_s:
            self._scored_s.append(after_s)

    def share(self, waited_s: float, deadline_s: float) -> float:
        """Of its candidates, how many the model is to score for a request: 1 all, 0 none."""
        if not self.enabled:
            return 1.0
        if waited_s > HURRY * (1.0 if self.level else HICCUP) * deadline_s:
            return 0.0
        if self.level <= PARTIAL:
            return 1.0 - self.level * (1.0 - FEWEST)
        return 0.0 if self._draw() < self.level - PARTIAL else FEWEST

    def refuses(self, worked_s: float, deadline_s: float) -> bool:
        """Whether a request before which so much work goes is to come again: its answer would make others late."""
        at_the_end = self.level == FALLBACK
        return self.enabled and worked_s > TOO_MUCH * (1.0 if at_the_end else HICCUP) * deadline_s

    def tick(self, since_s: float, longest_turn_s: float, deadline_s: float) -> None:
        """Move the level, `since_s` after the last move; `longest_turn_s`: of the loop, since then."""
        mean_s = fmean(self._scored_s) if self._scored_s else 0.0
        self._scored_s.clear()
        self._pressures.append(max(mean_s / SCORED, longest_turn_s / HURRY) / deadline_s - 1.0)
        pressure = min(self._pressures)
        by = pressure * since_s * (DOWN_PER_S if pressure > 0 else UP_PER_S)
        self.level = min(max(self.level + by, 0.0), FALLBACK) if self.enabled else 0.0
