"""Metrics of an experiment: two for each outcome of the surface, and those of every surface.

`primary_metric` and `guardrails` in `cluster.yaml` take their names. `training.experiment.panel`
computes the sums that `above` and `below` name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from serve.contract.errors import unknown
from serve.features.outcomes import Outcome
from serve.features.surface import Surface

VIEWERS = "viewers assigned to the arm: those with an exposure in the window, by the arm of their first one"


@dataclass(frozen=True)
class Metric:
    """Ratio Σ `above` / Σ `below` over an arm's viewers, or mean of `above` if `below` is None."""

    name: str
    title: str
    unit: str
    numerator: str
    above: str
    # Event kinds that the log must hold.
    events: tuple[str, ...] = ()
    below: str | None = None
    # True if less of it is better.
    bad: bool = False
    # True if `above` adds up amounts, such as money or minutes, and does not count events.
    is_sum: bool = False

    @property
    def denominator(self) -> str:
        """Return the denominator in words."""
        return self.below or VIEWERS


ACTIVE_DAYS = Metric(
    "active_days",
    "Active days per viewer",
    "days per viewer",
    "days on which a viewer had an exposure, summed over viewers: the daily active viewers of all days",
    "active_days",
)
# The denominator of ratios, and a guardrail of every experiment.
EXPOSURES = Metric(
    "exposures_per_viewer", "Exposures per viewer", "exposures per viewer", "exposures", "exposures"
)


def metrics_of(surface: Surface) -> tuple[Metric, ...]:
    """Return the metrics of a surface, those of its outcomes first and in their order."""
    of_outcomes = (_metrics(name, each, surface.is_bad(name)) for name, each in surface.outcomes.items())
    return (*chain.from_iterable(of_outcomes), ACTIVE_DAYS, EXPOSURES)


def no_metric(name: str, surface: Surface) -> str:
    """Return the message that a surface has no metric of this name; it names the nearest one."""
    known = [metric.name for metric in metrics_of(surface)]
    return f"{unknown('metric', name, known)} (an outcome of the surface gives NAME_per_viewer and NAME_per_exposure)"


def _metrics(name: str, outcome: Outcome, bad: bool) -> Iterator[Metric]:
    event, until, unit = outcome.event, outcome.until, outcome.unit
    events: tuple[str, ...] = (event,)
    is_sum = bool(until or outcome.sum)
    counted = f"values of {event} events" if outcome.sum else f"{event} events"
    if until is not None:
        events, unit = (event, until), "minutes"
        counted = f"minutes from {event} to the same viewer's {until} of the candidate"
    if outcome.cap is not None:
        counted += f", each at most {outcome.cap:g} {unit}".rstrip()
    words, amount = name.replace("_", " ").capitalize(), f", {unit}" if unit else ""
    for one, below in (("viewer", None), ("exposure", EXPOSURES.above)):
        title, by = f"{words} per {one}{amount}", f"{unit or name} per {one}"
        yield Metric(f"{name}_per_{one}", title, by, counted, name, events, below, bad, is_sum)
