"""Admission: whether a request is ranked under load, how much of it is scored, and by when. No Ray in here."""

from __future__ import annotations

import asyncio
from math import ceil

from serve.ranking.load_shedding import TICK_S, Ladder
from serve.ranking.loop_lag import Turns

LAST_WORD_S = 0.005  # kept of a deadline to answer in


class Admission:
    """Follows the load of one replica: `ladder` says what the next request gets."""

    def __init__(self) -> None:
        self.ladder = Ladder()
        self._turns = Turns()
        self._deadline_s = 0.1

    def configure(self, *, enabled: bool, deadline_ms: int) -> None:
        """Take new live settings; `deadline_ms` of a request that names none."""
        self.ladder.enabled = enabled
        self._deadline_s = deadline_ms / 1e3

    def refuses(self) -> bool:
        """Whether the ranking that is asked for now is refused, before any work is done for it."""
        return self.ladder.refuses(self._turns.worked_s(), self._deadline_s)

    def waited_s(self) -> float:
        """How long the request that runs now has waited at most."""
        return self._turns.waited_s()

    def deadline(self, waited_s: float, deadline_ms: int | None) -> float:
        """By when, of the loop's clock, a request must be scored that has waited so long and names this deadline."""
        within_s = self._deadline_s if deadline_ms is None else deadline_ms / 1e3
        return asyncio.get_running_loop().time() + within_s - waited_s - LAST_WORD_S - self._turns.last_s

    def num_scored(self, num_candidates: int, waited_s: float) -> int:
        """Of a request's candidates, how many the model is to score."""
        return ceil(self.ladder.share(waited_s, self._deadline_s) * num_candidates)

    def scored(self, begun_s: float) -> None:
        """What was to be scored since then, of the loop's clock, was answered with its scores."""
        self.ladder.scored(asyncio.get_running_loop().time() - begun_s)

    def late(self, begun_s: float, deadline: float) -> None:
        """It was answered without them for its deadline; it may have been told before that it would be late."""
        self.ladder.late(deadline - begun_s, self._deadline_s)

    async def run(self) -> None:
        """Move the ladder's level, until cancelled."""
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = loop.time()
            self.ladder.tick(now_s - before_s, self._turns.take_longest_s(), self._deadline_s)
            before_s = now_s
