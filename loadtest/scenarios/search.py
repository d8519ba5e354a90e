"""The search for the knee: the highest open-loop rate at which a service holds its SLO."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from loadtest.measure.verdict import Verdict

Phase = Literal["warm-up", "look", "search", "again", "confirm"]


@dataclass(frozen=True)
class Plan:
    """How to search. Rates in requests a second; a step is a warm-up that does not count and then a measurement."""

    start_rps: float = 150.0
    lowest_rps: float = 9.0  # a step of a lower rate has too few requests to speak of a p99
    highest_rps: float = 10_000.0  # the generator itself is late before that
    resolution: float = 1.045  # the search ends when what held and what did not are this close
    warm_up_rps: float = 50.0  # before anything is judged: code, caches and connections
    warm_up_s: float = 10.0
    look_s: float = 2.0
    step_warmup_s: float = 2.0
    step_s: float = 8.0
    confirm_s: float = 20.0
    # In turn, where a rate does not confirm.
    step_down: tuple[float, ...] = (0.95, 0.95, 0.95, 0.95, 0.9, 0.8, 0.6)
    # After a step that did not hold: what an overload left in queues is not of the next step.
    rest_s: float = 3.0
    budget_s: float = 150.0  # no further halving of the gap after this; confirming is still to come


@dataclass(frozen=True)
class Step:
    """One rate offered, and what was measured.

    `verdict`: "void" says that the generator was late, and nothing of the service. `kept_up`: nearly all was
    answered in full within the step. `doubtful`: it did not hold, yet kept up and answered 90 % in time, so one
    hiccup may be why: 100 ms of eight seconds break a p99.
    """

    rate_rps: float
    verdict: Verdict
    reasons: list[str]
    kept_up: bool
    doubtful: bool
    rps: float
    candidates_per_s: float
    full_share: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    errors: int
    generator_late_ms_p99: float
    phase: Phase = "search"


@dataclass(frozen=True)
class Knee:
    """The step that confirmed the knee (None: no rate held), and all steps on the way."""

    confirmed: Step | None
    steps: list[Step]


Measure = Callable[[float, float, float, Phase], Step]
"""(rate, seconds of warm-up, seconds measured, phase) → what came of it."""


def find_knee(
    measure: Measure,
    plan: Plan,
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> Knee:
    """Double the rate until it is out of reach, find by halving where it holds, and confirm that for longer."""
    begun = clock()
    search = _Search(measure, plan, rest)
    measure(plan.warm_up_rps, 0.0, plan.warm_up_s, "warm-up")
    held_rps, failed_rps = search.bracket()
    while held_rps and failed_rps > held_rps * plan.resolution and clock() - begun < plan.budget_s:
        middle_rps = round((held_rps * failed_rps) ** 0.5, 1)
        if search.holds(middle_rps):
            held_rps = middle_rps
        else:
            failed_rps = middle_rps
    return Knee(search.confirmed(held_rps), search.steps)


class _Search:
    """The questions that a search asks of a service, and the steps that answered them."""

    def __init__(self, measure: Measure, plan: Plan, rest: Callable[[float], None]) -> None:
        self.steps: list[Step] = []
        self._measure = measure
        self._plan = plan
        self._rest = rest

    def bracket(self) -> tuple[float, float]:
        """A rate that held (0: none) and one that did not, or may not be tried, the one twice the other."""
        plan, rate_rps = self._plan, self._plan.start_rps
        failed_rps = rate_rps
        if self.within_reach(rate_rps):
            while 2 * rate_rps <= plan.highest_rps and self.within_reach(2 * rate_rps):
                rate_rps *= 2
            failed_rps = min(2 * rate_rps, plan.highest_rps)
        else:
            rate_rps /= 2
        while rate_rps >= plan.lowest_rps:
            if self.holds(rate_rps):
                return rate_rps, failed_rps
            failed_rps, rate_rps = rate_rps, rate_rps / 2
        return 0.0, failed_rps

    def within_reach(self, rate_rps: float) -> bool:
        """Whether the service keeps up for a moment; asked twice, for the first may meet what an overload left.

        So no rate far above the knee is held for long: from an overload of ten seconds an autoscaled service
        starts replicas, which from then on share the cores with what is measured.
        """
        return any(self._step(rate_rps, 0.0, self._plan.look_s, "look").kept_up for _ in range(2))

    def holds(self, rate_rps: float) -> bool:
        """Whether a rate holds its limits; what is doubtful is tried once more, for the machine may be shared."""
        if not self.within_reach(rate_rps):
            return False
        plan = self._plan
        step = self._step(rate_rps, plan.step_warmup_s, plan.step_s, "search")
        if step.verdict != "held" and step.doubtful:
            step = self._step(rate_rps, plan.step_warmup_s, plan.step_s, "again")
        return step.verdict == "held"

    def confirmed(self, rate_rps: float) -> Step | None:
        """The step that holds for longer, at this rate or the next lower one; None if there is none."""
        plan = self._plan
        for factor in (1.0, *plan.step_down):
            rate_rps = round(rate_rps * factor, 1)
            if rate_rps < plan.lowest_rps:
                break
            step = self._step(rate_rps, plan.step_warmup_s, plan.confirm_s, "confirm")
            if step.verdict == "held":
                return step
        return None

    def _step(self, rate_rps: float, warmup_s: float, seconds: float, phase: Phase) -> Step:
        if self.steps and self.steps[-1].verdict != "held":
            self._rest(self._plan.rest_s)
        self.steps.append(self._measure(rate_rps, warmup_s, seconds, phase))
        return self.steps[-1]
