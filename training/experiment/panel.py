"""The panel of an experiment: what each viewer did, summed by day.

In shapes, N is the number of exposures, E of events, V of viewers and C of viewer-days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serve.features.outcomes import Outcome
from training.data.amounts import amounts
from training.experiment.served_log import NO_ID
from training.experiment.window import DAY_MS, Window

# The suffix in the names of sums over the pre-period. It cannot be part of an outcome's name, which
# has no space.
BEFORE = " before"
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Panel:
    """The viewers of an experiment, in the order of their first exposures in the window.

    Attributes:
        arm: [V], the name of the arm of the viewer's first exposure.
        first_day: [V], the day of that exposure.
        in_first_24h: [V], whether it was within 24 hours of the experiment's first exposure.
        viewer: [C], the index of the viewer of each viewer-day that has an exposure.
        sums: by name, [C], the sum of each viewer-day.
        before: by name, [V], the sums over the pre-period; 0 for new viewers, and empty if all
            viewers are new.
        num_crossing: how many viewers have exposures in a second arm.
        num_unattributed: how many events begin an outcome but have no exposure, without those
            whose exposure was probably not kept.
        num_unknown: by outcome, how many events have an unknown amount; they count as 0.
    """

    arm: NDArray[Any]
    first_day: I64
    in_first_24h: NDArray[np.bool_]
    viewer: I64
    day: I64
    sums: Mapping[str, F64]
    before: Mapping[str, F64]
    num_crossing: int = 0
    num_seen_before: int = 0
    num_unattributed: int = 0
    num_unknown: Mapping[str, int] = field(default_factory=dict)

    def rows(self, arms: Sequence[str]) -> NDArray[np.bool_]:
        """Return flags [V] of the viewers of these arms."""
        return np.isin(self.arm, arms)

    def by_day(self) -> Iterator[tuple[int, dict[str, F64]]]:
        """Yield each day with the viewers' cumulative sums [V] at its end.

        The sums are updated in place.
        """
        running = {name: np.zeros(len(self.arm)) for name in self.sums}
        for day in range(int(self.day.max(initial=0)) + 1):
            cells = np.flatnonzero(self.day == day)
            for name, sums in self.sums.items():
                running[name][self.viewer[cells]] += sums[cells]
            yield day, running

    def totals(self) -> dict[str, F64]:
        """Return the viewers' sums [V] over the window, and those over the pre-period."""
        cells, size = self.sums.items(), len(self.arm)
        sums = {name: np.bincount(self.viewer, each, size).astype(np.float64) for name, each in cells}
        return {**sums, **self.before}


def panel(
    exposures: pd.DataFrame, events: pd.DataFrame, window: Window, outcomes: Mapping[str, Outcome]
) -> Panel:
    """Build the panel of a window from all exposures, also earlier ones and other experiments."""
    ours = exposures[exposures["ours"] & window.holds(exposures["ts_ms"])]
    columns = [events[name] for name in ("kind", "ts_ms", "viewer", "candidate", "value")]
    amount = {name: amounts(outcome, *columns) for name, outcome in outcomes.items()}
    counted = {name: np.nan_to_num(each) for name, each in amount.items()}
    # Number the viewers in the order of their first exposures.
    codes, viewers = pd.factorize(ours["viewer"])
    first = ours.drop_duplicates("viewer")
    arm, came_ms = first["arm"].to_numpy(object), first["ts_ms"].to_numpy()
    num_days = len(window.midnights_ms)
    viewer_days = codes * num_days + window.day(ours["ts_ms"])
    keys, cell, num_exposures = np.unique(viewer_days, return_inverse=True, return_counts=True)
    # An event that names a request counts for all exposures that the request's exposure represents.
    row, times = (
        _of_requests(ours["request_id"], of_each, events["request_id"]) for of_each in (cell, ours["one_in"])
    )
    times = np.maximum(times, 1)
    # An event that names no request counts for its viewer and day, unless it comes before the
    # viewer's first exposure.
    who = viewers.get_indexer(pd.Index(events["viewer"]))
    found = pd.Index(keys).get_indexer(pd.Index(who * num_days + window.day(events["ts_ms"])))
    in_window = window.holds(events["ts_ms"]).to_numpy()
    is_after = events["ts_ms"].to_numpy() >= came_ms[who]
    row = np.where(events["request_id"] == NO_ID, np.where(in_window & is_after, found, -1), row)
    fits = row >= 0
    sums = {"exposures": num_exposures.astype(np.float64), "active_days": np.ones(len(keys))}
    for name, each in counted.items():
        sums[name] = np.bincount(row[fits], (each * times)[fits], len(keys))
    before, num_seen_before = _before(exposures, counted, events, viewers, window)
    begins = events["kind"].isin({outcome.event for outcome in outcomes.values()})
    return Panel(
        arm,
        window.day(first["ts_ms"]),
        came_ms < came_ms[0] + DAY_MS,
        keys // num_days,
        keys % num_days,
        sums,
        before,
        len(np.unique(codes[ours["arm"].to_numpy(object) != arm[codes]])),
        num_seen_before,
        max(0, int((begins & in_window & ~fits).sum() - (times - 1)[begins & in_window].sum())),
        {name: int((np.isnan(each) & fits).sum()) for name, each in amount.items()},
    )


def _of_requests(requests: pd.Series[Any], values: Any, named: pd.Series[Any]) -> I64:
    """Return [E] a value of the request that an event names, such as its day; -1 without one."""
    # Keep only the requests that events name, because there are fewer events than exposures.
    wanted = (requests.isin(named) & ~requests.duplicated()).to_numpy()
    cells = pd.Series(np.asarray(values)[wanted], requests[wanted])
    return cells.reindex(named, fill_value=-1).to_numpy()


def _before(
    exposures: pd.DataFrame,
    amount: Mapping[str, F64],
    events: pd.DataFrame,
    viewers: pd.Index[Any],
    window: Window,
) -> tuple[dict[str, F64], int]:
    """Return the viewers' sums over the pre-period, and how many viewers have an exposure in it."""
    early = exposures[(exposures["ts_ms"] < window.before_ms) & exposures["viewer"].isin(viewers)]
    if early.empty:
        return {}, 0
    days = (early["ts_ms"] // DAY_MS).groupby(early["viewer"])
    is_early = events["ts_ms"].to_numpy() < window.before_ms
    past = pd.DataFrame(amount)[is_early].groupby(events["viewer"][is_early].to_numpy()).sum()
    sums = past.assign(exposures=0).reindex(viewers, fill_value=0)
    sums["exposures"] = days.size().reindex(viewers, fill_value=0)
    sums["active_days"] = days.nunique().reindex(viewers, fill_value=0)
    before = {f"{name}{BEFORE}": sums[name].to_numpy(np.float64) for name in sums}
    return before, int((sums["exposures"] > 0).sum())
