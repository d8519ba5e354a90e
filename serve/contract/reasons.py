"""Reasons of a ranking in plain words, for reports, screens and the model card."""

from __future__ import annotations

from collections.abc import Sequence

from serve.contract.rankings import FeatureValue, Reason
from serve.contract.validation import spelled

ORDINALS = {1: "First", 2: "Second", 3: "Third"}
# A sentence leaves out contributions below this share of the largest.
WORTH_WORDS = 0.1
# Unit of features that are 1 or 0.
YES_NO = "yes/no"
# Unit of times, which are told in minutes, days or years as they are long.
SECONDS = "s"


def sentence(position: int, reasons: Sequence[Reason]) -> str:
    """Return why a candidate has its position, from its reasons.

    Example: "First. In favour: joined this host's rooms (0.31, typical 0.05). Against: people in
    the room (3, typical 12)."
    """
    parts = [ORDINALS.get(position, f"Position {position}")]
    least = WORTH_WORDS * max((abs(reason.contribution) for reason in reasons), default=0.0)
    for side, sign in (("In favour", 1), ("Against", -1)):
        if own := [in_words(reason) for reason in reasons if sign * reason.contribution >= least]:
            parts.append(f"{side}: {'; '.join(own)}")
    return ". ".join(parts if len(parts) > 1 else [*parts, "Nothing sets it apart"]) + "."


def in_words(reason: Reason) -> str:
    """Return one reason: its label, the value and the typical value.

    Example: "time since the room started (unknown, typical 36 min)".
    """
    unit = "" if reason.unit in (None, YES_NO, SECONDS) else f" {reason.unit}"
    value, typical = (_worded(each, reason.unit) for each in (reason.value, reason.typical))
    # The unit stands once, after the first value that is there.
    said = (
        f"{value}, typical {typical}{unit}" if reason.value is None else f"{value}{unit}, typical {typical}"
    )
    return f"{reason.label} ({said})"


def _worded(value: FeatureValue, unit: str | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, str | list):
        return ", ".join([value] if isinstance(value, str) else value) or "none"
    if unit == YES_NO:
        return "yes" if value else "no"
    if unit == SECONDS:
        return spelled(value)
    # Without the 0, -0.0 would keep its sign.
    rounded = float(f"{value:.3g}") + 0
    return f"{value:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}"
