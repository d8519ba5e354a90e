"""Decide an experiment: from what its log shows to a verdict, its reason, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.features.experiment_metrics import Metric
from training.experiment import fading, guardrails
from training.experiment.comparison import Arms
from training.experiment.verdict import Verdict, by_denominator, by_limit, verdict

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the log of a valid experiment shows. Rows are those of `comparisons`.

    Attributes:
        primary: the metric that decides.
        row: its row.
        per_viewer: the row of what it counts, per viewer; the same one if it is not a ratio.
        exposures: the row of exposures per viewer.
        tested: the tests of the guardrails.
        lasting: the result of `fading.by_period`.
    """

    primary: Metric
    row: Row
    per_viewer: Row
    exposures: Row
    tested: Sequence[Row]
    lasting: Row


@dataclass(frozen=True)
class Decision:
    """A verdict, and what it takes to come to another.

    Attributes:
        wanted: the viewers of both arms with which `awaited` is to be expected; None if unknown.
        instead: why more days would not change the verdict.
    """

    verdict: Verdict
    reason: str
    wanted: int | None = None
    awaited: str = ""
    instead: str | None = None


def decide(facts: Facts, arms: Arms, smallest_effect: float, *, ended: bool) -> Decision:
    """Return the decision on an experiment that ran long enough."""
    row, tested = facts.row, facts.tested
    result, reason = verdict(row, smallest_effect, ended=ended)
    wanted, awaited = row.get("viewers_needed"), "enough viewers have any"
    if row["effect"] or not row["few"]:
        awaited = (
            f"an effect of {smallest_effect:.1%} shows with 80 % probability{' at a look' * (not ended)}"
        )
    if result not in ("won", "lost"):
        return Decision(result, reason, wanted, awaited)
    if against := _against(facts, result, arms, ended):
        why = f"not {result}: {'; '.join(against)}; {reason}"
        instead = "more days alone need not change this verdict"
        return Decision("no difference shown", why, wanted, awaited, instead)
    unproven = [one for one in tested if one.get("declared") and one["state"] != "holds"]
    if result == "won" and unproven:
        whys = "; ".join(guardrails.why_unproven(one, arms[0]) for one in unproven)
        needed = [one["viewers_needed"] for one in unproven]
        wanted = None if None in needed else max(needed)
        awaited = "a guardrail that has not changed is shown to hold with 80 % probability"
        return Decision("no difference shown", f"not won: {whys}; {reason}", wanted, awaited)
    return Decision(result, reason, 0, "the minimum run is reached")


def _against(facts: Facts, result: Verdict, arms: Arms, ended: bool) -> list[str]:
    """Return in words what speaks against a verdict of won or lost."""
    sign = 1 if (result == "won") != facts.primary.bad else -1
    found = guardrails.harm(facts.tested) if result == "won" else []
    found += by_limit(sign, facts.row, *arms)
    if facts.primary.below:
        found += by_denominator(sign, facts.per_viewer, facts.exposures, ended=ended)
    return found + fading.against(sign, facts.lasting, ended=ended)
