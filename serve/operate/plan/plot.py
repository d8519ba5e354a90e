"""Plots of a plan: offered load, Ray's counts, replicas and nodes over time."""

from __future__ import annotations

from collections.abc import Iterator

from serve.operate.plan.outcome import ONGOING, WANTED, Outcome
from serve.operate.plan.trace import NODES, TIME, count_column
from serve.report.charts import Axis, Series, plot

SECONDS = Axis("second of the trace")


def draw(outcome: Outcome, with_real: bool) -> list[str]:
    """Return a plot of the load and of each count; `with_real` shows a real run's counts too."""
    at_s, counts = outcome.counts[TIME], outcome.counts
    rate = [outcome.trace.rate_rps(at) for at in at_s]
    load = Series("offered", at_s, rate, "step")
    plots = [plot("Load", SECONDS, Axis("requests a second", zero=True), [load], height=160)]
    for deployment, target in outcome.service.targets:
        ongoing = counts[f"{deployment.name}{ONGOING}"] / target
        series = [
            Series("ongoing / target", at_s, ongoing, "step", colour="muted"),
            Series("wanted", at_s, counts[f"{deployment.name}{WANTED}"], "step", colour="other", dashed=True),
            *_counts(outcome, with_real, deployment.name),
        ]
        plots.append(_plot(f"Replicas of {deployment.name}", series))
    return [*plots, _plot("Nodes", _counts(outcome, with_real, NODES))]


def _counts(outcome: Outcome, with_real: bool, name: str) -> Iterator[Series]:
    column = count_column(name)
    yield Series("running, planned", outcome.counts[TIME], outcome.counts[column], "step", colour="model")
    if with_real and column in outcome.trace.counted:
        real = outcome.trace.counted[column]
        yield Series("running, real", outcome.trace.t_s, real, "step", colour="popular", dashed=True)


def _plot(title: str, series: Iterator[Series] | list[Series]) -> str:
    return plot(title, SECONDS, Axis(title.split()[0].lower(), zero=True, whole=True), series, height=160)
