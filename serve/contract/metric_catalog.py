"""Catalog of the service's metrics; `metric_catalog.toml` has their labels and descriptions."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, NamedTuple

# Upper bounds of histogram buckets; one bucket above the last, +Inf, is added. They are floats, so
# that `str(bound)` is the value of the label `le`.
BOUNDS_MS = (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 250, 500, 1000)
BOUNDS_S = tuple(bound / 1e3 for bound in BOUNDS_MS)
LAG_BOUNDS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3_600.0)
# Bounds in candidates. A batch holds at most 1,760 of them by default.
BATCH_BOUNDS = (1.0, 10.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1_760.0, 3_520.0)
BOUNDS = {"latency": BOUNDS_S, "lag": LAG_BOUNDS_S, "batch": BATCH_BOUNDS, None: ()}


class Metric(NamedTuple):
    """Name, description and labels of one metric.

    Ray adds the prefix `ray_`, and the suffix `_total` to a counter. A histogram has the series
    `_bucket` (cumulative over the label `le`), `_sum` and `_count`. Times are in seconds.
    """

    name: str
    what: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    is_gauge: bool = False

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """The kind; a metric with bounds is a histogram."""
        return "gauge" if self.is_gauge else "histogram" if self.bounds else "counter"

    @property
    def exported(self) -> str:
        """Return the name on the metrics page, without the suffix of a histogram's series."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS = {
    name: Metric(
        name, row["what"], tuple(row.get("labels", ())), BOUNDS[row.get("bounds")], "is_gauge" in row
    )
    for name, row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text()).items()
}
"""The metrics by their names."""


def exported(name: str) -> str:
    """Return the name of a metric on the metrics page."""
    return METRICS[name].exported
