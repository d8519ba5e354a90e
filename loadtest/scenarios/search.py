"""Search for the knee: the highest open-loop rate at which a service meets its SLO."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.measure.verdict import Verdict

StepPhase = Literal["warm-up", "look", "search", "confirm"]


@dataclass(frozen=True)
class KneePlan:
    """Parameters of a search. Rates are in requests per second.

    A step offers one rate: first as a warm-up, which is not counted, and then for a measurement.
    """

    # First rate to try. It is doubled until the service falls behind.
    start_rps: float = 150.0
    # Lowest rate to try. A step at a lower rate would have too few requests for a p99.
    lowest_rps: float = 9.0
    # Highest rate to try. At higher rates the generator itself is late.
    highest_rps: float = 10_000.0
    # The search ends when the lowest rate that did not hold is at most this many times the highest
    # one that held.
    resolution: float = 1.045
    # Before the first judged step the rate rises from 0 to `warm_up_rps` within `warm_up_s`, so
    # that code, caches and connections are warm.
    warm_up_rps: float = 100.0
    warm_up_s: float = 10.0
    # Duration of a look: a short step which only tells whether the service keeps up.
    look_s: float = 2.0
    # Seconds of warm-up and of measurement of a step that the SLO judges.
    step_warmup_s: float = 2.0
    step_s: float = 8.0
    # Measured seconds of a step that confirms the knee.
    confirm_s: float = 12.0
    # A rate is confirmed if most of this many steps hold. Near the knee a single step depends on
    # chance.
    confirm_steps: int = 3
    # A rate that is not confirmed is multiplied by these factors, one after the other.
    step_down: tuple[float, ...] = (0.95, 0.95, 0.95, 0.95, 0.9, 0.8, 0.6)
    # Pause after a step that did not hold, so that its queues do not affect the next step.
    rest_s: float = 3.0
    # After this time the bisection stops, and the confirmation begins.
    budget_s: float = 200.0


@dataclass(frozen=True)
class KneeStep:
    """One offered rate and its measurement, whose `numbers` are for the report.

    A `verdict` of "void" means that the generator was late, so the step says nothing about the
    service. `kept_up` is True if nearly all requests got a full answer within the step.
    """

    rate_rps: float
    verdict: Verdict
    reasons: list[str]
    kept_up: bool
    phase: StepPhase
    numbers: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return the step for JSON, with its numbers beside its other fields."""
        return {**self.numbers, **{name: one for name, one in vars(self).items() if name != "numbers"}}


@dataclass(frozen=True)
class Knee:
    """All steps of a search, and those that confirmed the knee.

    `confirming` is empty if no rate held.
    """

    confirming: list[KneeStep]
    steps: list[KneeStep]

    @property
    def confirmed(self) -> KneeStep | None:
        """Return the last step at the knee, which held; None if there is no knee."""
        return self.confirming[-1] if self.confirming else None


Rest = Callable[[float], None]
# A function from (rate, warm-up seconds, measured seconds, phase) to a step.
Measure = Callable[[float, float, float, StepPhase], KneeStep]


def find_knee(
    measure: Measure, plan: KneePlan, clock: Callable[[], float] = time.monotonic, rest: Rest = time.sleep
) -> Knee:
    """Search for the knee of a service.

    Double the rate until the service falls behind, bisect between the last two rates, and confirm
    the highest rate that held with longer steps.
    """
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
    return Knee(search.confirming(held_rps), search.steps)


def confirm_knee(measure: Measure, plan: KneePlan, rate_rps: float, rest: Rest = time.sleep) -> Knee:
    """Confirm a rate that held before, or find the next lower rate that holds."""
    search = _Search(measure, plan, rest)
    return Knee(search.confirming(rate_rps), search.steps)


class _Search:
    """Steps of a search so far, and the questions about a rate that steps answer."""

    def __init__(self, measure: Measure, plan: KneePlan, rest: Rest) -> None:
        self.steps: list[KneeStep] = []
        self._measure = measure
        self._plan = plan
        self._rest = rest

    def bracket(self) -> tuple[float, float]:
        """Return a rate that held, and a higher one that did not or that exceeds the limit.

        The second is at most twice the first. If no rate held, the first is 0.
        """
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
        """Return whether the service keeps up with a rate for a moment, in one of two tries.

        There is a second try, because the first one may meet the effects of an earlier overload.
        These short tries avoid long steps far above the knee, whose queues would affect the next
        step.
        """
        return any(self._step(rate_rps, 0.0, self._plan.look_s, "look").kept_up for _ in range(2))

    def holds(self, rate_rps: float) -> bool:
        """Return whether the SLO holds at a rate, in one of two tries.

        There is a second try, because another program on the machine may stall the service. A stall
        of 100 ms in eight seconds makes more than 1 % of the requests late and so breaks the limit
        of the p99. A stall of a second breaks that of the p90 and causes refusals.
        """
        if not self.within_reach(rate_rps):
            return False
        plan = self._plan
        tries = (self._step(rate_rps, plan.step_warmup_s, plan.step_s, "search") for _ in range(2))
        return any(step.verdict == "held" for step in tries)

    def confirming(self, rate_rps: float) -> list[KneeStep]:
        """Confirm a rate, or the next lower one at which most steps hold.

        Returns the steps at that rate; none if no rate holds.
        """
        plan = self._plan
        for factor in (1.0, *plan.step_down):
            rate_rps = round(rate_rps * factor, 1)
            if rate_rps < plan.lowest_rps:
                break
            steps, num_held, most = list[KneeStep](), 0, plan.confirm_steps // 2 + 1
            while max(num_held, len(steps) - num_held) < most:
                steps.append(self._step(rate_rps, plan.step_warmup_s, plan.confirm_s, "confirm"))
                num_held += steps[-1].verdict == "held"
            if num_held == most:
                return steps
        return []

    def _step(self, rate_rps: float, warmup_s: float, seconds: float, phase: StepPhase) -> KneeStep:
        if self.steps and self.steps[-1].verdict != "held":
            self._rest(self._plan.rest_s)
        self.steps.append(self._measure(rate_rps, warmup_s, seconds, phase))
        return self.steps[-1]
