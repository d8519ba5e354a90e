"""Outcomes of a surface: what may follow when a candidate is shown, and what each is worth.

The amount of an outcome is that of one shown candidate: 1 if the event follows and 0 if not, the
minutes from the event to the one that ends it, or the sum of the values that the events carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, WithJsonSchema, field_validator

from serve.contract.errors import TabrankError, unknown
from serve.contract.typed_reader import STRICT, Between, checked_by, refusal
from serve.contract.validation import UNITS_MS, duration, duration_ms, number
from serve.features.kind import DURATION_SCHEMA

# Names become part of names of metrics, such as `join_per_viewer`.
NAME = re.compile("[a-z][a-z0-9_]{0,31}")
# Each outcome costs an output of the network, and a number in the log for each candidate shown.
MAX_OUTCOMES = 16
MAX_CAP = 1e9
# Metrics of every experiment, whatever its outcomes are.
RESERVED = ("exposures", "active_days")
Weight = Annotated[float, Between(-1e6, 1e6)]


@dataclass(frozen=True)
class Outcome:
    """What may follow an impression.

    Attributes:
        event: Name of the event.
        within: Time after the impression within which it counts, inclusive.
        until: Event that ends a stay. The amount is then the minutes from `event` to `until`.
        sum: `value` adds up the values of the events.
        cap: The most that counts: a duration such as "60m" with `until`, a number with `sum`.
        unit: Unit of a sum, for people.
        bad: Less of it is better. An outcome with a negative weight is bad without it.
    """

    __pydantic_config__ = STRICT
    event: str
    within_ms: Annotated[
        int, BeforeValidator(int), checked_by(duration_ms), Field(alias="within"), DURATION_SCHEMA
    ]
    until: str | None = None
    sum: Literal["value"] | None = None
    cap: Annotated[
        float | None, Field(validate_default=True), WithJsonSchema({"type": ["string", "number"]})
    ] = None
    unit: str = ""
    bad: StrictBool = False

    @property
    def scale(self) -> float:
        """Return the amount that a prediction of 1 stands for: the cap, or one event."""
        return self.cap or 1.0

    @property
    def known_ms(self) -> int:
        """Return how long after an impression its amount is known: a stay may last its cap."""
        return self.within_ms + (int(UNITS_MS["m"] * self.scale) if self.until else 0)

    @property
    def meaning(self) -> Outcome:
        """Return the part on which its amounts depend; a unit and `bad` are for people."""
        return replace(self, unit="", bad=False)

    def __str__(self) -> str:
        """Return its meaning in words, such as `join within 30m`."""
        what = f"values of {self.event}" if self.sum else self.event
        what = f"minutes from {self.event} to {self.until}" if self.until else what
        most = "" if self.cap is None else f", at most {self.cap:g}"
        return f"{what} within {duration(self.within_ms)}{most}"

    @field_validator("sum")
    @classmethod
    def _is_one_amount(cls, sum_: str | None, info: ValidationInfo) -> str | None:
        if sum_ and info.data.get("until"):
            raise ValueError("an outcome is either a stay, with until, or a sum; leave one of them out")
        return sum_

    @field_validator("cap", mode="before")
    @classmethod
    def _fits_the_amount(cls, cap: object, info: ValidationInfo) -> float | None:
        until, is_sum = info.data.get("until"), info.data.get("sum")
        if not (until or is_sum):
            if cap is None:
                return None
            raise ValueError("only a stay, with until, or a sum has a cap; leave it out")
        if cap is None:
            most, such = ("longest stay", '"60m"') if until else ("largest sum", "500")
            raise ValueError(f"is missing; state the {most} that counts, such as cap = {such}")
        try:
            return duration_ms(cap, "") / UNITS_MS["m"] if until else number(cap, "", 1e-9, MAX_CAP)
        except TabrankError as error:
            raise ValueError(str(error).removeprefix(": ")) from None


def _check_name(name: str, where: str) -> str:
    if name in RESERVED:
        raise TabrankError(f"{where}: {name!r} is a metric of every experiment; choose another name")
    if not NAME.fullmatch(name):
        raise TabrankError(f"{where}: {name!r} must be 1 to 32 lower-case letters, digits and _")
    return name


Outcomes = Mapping[Annotated[str, checked_by(_check_name)], Outcome]


def check_outcomes(outcomes: Outcomes, events: tuple[str, ...] | None) -> Outcomes:
    """Return the outcomes; raise a validator's error unless they fit the declared events."""
    if not 0 < len(outcomes) <= MAX_OUTCOMES:
        raise ValueError(f"{len(outcomes)} outcomes; state 1 to {MAX_OUTCOMES}, the most important one first")
    problems = []
    for name, outcome in outcomes.items():
        for key, event in (("event", outcome.event), ("until", outcome.until)):
            if events is not None and event is not None and event not in events:
                problems.append(((name, key), unknown("value", event, events)))
        if outcome.unit and not outcome.sum:
            problems.append(((name, "unit"), "only a sum has a unit; leave it out"))
    if problems:
        raise refusal(*problems)
    return outcomes


def misfits(
    weights: Mapping[str, float], outcomes: Outcomes, own: Mapping[str, float]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each weight that does not fit the outcomes, and the error.

    `own` are the weights of the surface; one below 0 makes its outcome bad.
    """
    for name, weight in weights.items():
        if name not in outcomes:
            yield (name,), unknown("outcome", name, outcomes)
        elif weight > 0 and (outcomes[name].bad or own.get(name, 0.0) < 0):
            yield (name,), f"{weight:g} rewards a bad outcome; make it negative, or change the surface"
    if not any(weights.values()):
        yield (), "all weights are 0, so all candidates are worth the same; give one another weight"
