"""Metrics of an experiment: the numerator, the denominator and the events of each.

`primary_metric` in `cluster.yaml` takes their names. `training.experiment.panel` computes the sums
that `above` and `below` name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricName = Literal["active_days", "join_rate", "clicks", "joins", "minutes"]
CLICK, JOIN, LEAVE = "click", "join", "leave"
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
    denominator: str = VIEWERS


# The denominator of ratios, and a guardrail of every experiment.
EXPOSURES = Metric("exposures", "Exposures per viewer", "exposures per viewer", "exposures", "exposures")
METRICS = (
    Metric(
        "active_days",
        "Active days per viewer",
        "days per viewer",
        "days on which a viewer had an exposure, summed over viewers: the daily active viewers of all days",
        "active_days",
    ),
    Metric(
        "join_rate",
        "Join rate per exposure",
        "joins per exposure",
        "joins",
        "joins",
        (JOIN,),
        "exposures",
        "exposures",
    ),
    Metric(
        "clicks",
        "Clicks per viewer",
        "clicks per viewer",
        "clicks",
        "clicks",
        (CLICK,),
    ),
    Metric("joins", "Joins per viewer", "joins per viewer", "joins", "joins", (JOIN,)),
    Metric(
        "minutes",
        "Listening time per viewer",
        "minutes per viewer",
        "minutes from a join to the same viewer's leave of the same candidate",
        "minutes",
        (JOIN, LEAVE),
    ),
)
