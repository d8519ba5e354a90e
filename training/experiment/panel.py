"""Panel of an experiment: sums of each viewer by day.

Letters: N exposures, E events, V viewers, C viewer-days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serve.contract.experiment_metrics import CLICK, JOIN, LEAVE
from training.experiment.served_log import NO_ID
from training.experiment.window import DAY_MS, Window

# Suffix of the names of sums over the pre-period.
BEFORE = "_before"
MINUTE_MS = 60_000.0
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Panel:
    """Viewers by the arm of their first exposure in the window, in order of that exposure.

    `arm` [V] are names, `first_day` [V] the day of the first exposure, `in_first_24h` [V]
    whether it was within 24 hours of the first exposure of all. `viewer` [C] are indices into V,
    `sums` [C] a number for each viewer-day with an exposure. `before` [V] are sums over the
    pre-period, 0 for new viewers, and empty if all are new. `num_crossing` counts viewers with
    exposures in a second arm, and `num_unattributed` events without an exposure.
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

    def rows(self, arms: Sequence[str]) -> NDArray[np.bool_]:
        """Return flags [V] of the viewers of these arms."""
        return np.isin(self.arm, arms)

    def by_day(self) -> Iterator[tuple[int, dict[str, F64]]]:
        """Yield each day with the viewers' cumulative sums [V] at its end, updated in place."""
        running = {name: np.zeros(len(self.arm)) for name in SUMS}
        for day in range(int(self.day.max(initial=0)) + 1):
            cells = np.flatnonzero(self.day == day)
            for name in SUMS:
                running[name][self.viewer[cells]] += self.sums[name][cells]
            yield day, running

    def totals(self) -> dict[str, F64]:
        """Return the viewers' sums [V] over the window, and those of the pre-period."""
        size = len(self.arm)
        sums = {name: np.bincount(self.viewer, self.sums[name], size).astype(np.float64) for name in SUMS}
        return {**sums, **self.before}


def panel(exposures: pd.DataFrame, events: pd.DataFrame, window: Window) -> Panel:
    """Build the panel of a window from all exposures, also earlier ones and other experiments."""
    ours = exposures[exposures["ours"] & window.holds(exposures["ts_ms"])]
    events = events.assign(**EVENT_SUMS)
    # Number the viewers in order of their first exposure.
    codes, viewers = pd.factorize(ours["viewer"])
    first = ours.drop_duplicates("viewer")
    arm, came_ms = first["arm"].to_numpy(object), first["ts_ms"].to_numpy()
    num_days = len(window.midnights_ms)
    keys, cell, num_exposures = np.unique(
        codes * num_days + window.day(ours["ts_ms"]), return_inverse=True, return_counts=True
    )
    row = _rows(ours["request_id"], cell, events["request_id"])
    # An event without a request counts for its viewer and day, if it is not before the viewer's
    # first exposure.
    who = viewers.get_indexer(pd.Index(events["viewer"]))
    found = pd.Index(keys).get_indexer(pd.Index(who * num_days + window.day(events["ts_ms"])))
    in_window = window.holds(events["ts_ms"]).to_numpy()
    is_after = events["ts_ms"].to_numpy() >= came_ms[who]
    row = np.where(events["request_id"] == NO_ID, np.where(in_window & is_after, found, -1), row)
    fits = row >= 0
    sums = {"exposures": num_exposures.astype(np.float64), "active_days": np.ones(len(keys))}
    for name in EVENT_SUMS:
        sums[name] = np.bincount(row[fits], events[name][fits], len(keys))
    before, num_seen_before = _before(exposures, events, viewers, window)
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
        int((events["kind"].isin((CLICK, JOIN)) & in_window & ~fits).sum()),
    )


def each(kind: str) -> Callable[[pd.DataFrame], pd.Series[float]]:
    """Return a function that gives [E] 1 for each event of this kind, else 0."""
    return lambda events: (events["kind"] == kind).astype(float)


def listened(events: pd.DataFrame) -> pd.Series[float]:
    """Return [E] the minutes from each join to the same viewer's leave of the candidate, else 0.

    A join without a leave before the next join counts 0, because its duration is unknown.
    """
    stays = events[events["kind"].isin((JOIN, LEAVE))]
    leave_ms = stays["ts_ms"].where(stays["kind"] == LEAVE)
    following_ms = leave_ms.groupby([stays["viewer"], stays["candidate"]]).shift(-1)
    minutes = (following_ms - stays["ts_ms"])[stays["kind"] == JOIN] / MINUTE_MS
    return minutes.reindex(events.index).fillna(0.0)


# Sums of a viewer-day that metrics name: what each event adds.
EVENT_SUMS = {"clicks": each(CLICK), "joins": each(JOIN), "minutes": listened}
SUMS = ("exposures", "active_days", *EVENT_SUMS)


def _rows(requests: pd.Series[Any], cell: I64, named: pd.Series[Any]) -> I64:
    """Return [E] the viewer-day of the request that an event names, -1 without one."""
    # Keep the requests that events name, because there are fewer events than exposures.
    wanted = requests.isin(named).to_numpy()
    cells = pd.Series(cell[wanted], requests[wanted])
    return cells.reindex(named, fill_value=-1).to_numpy()


def _before(
    exposures: pd.DataFrame, events: pd.DataFrame, viewers: pd.Index[Any], window: Window
) -> tuple[dict[str, F64], int]:
    """Return the viewers' sums over the pre-period, and how many viewers have an exposure in it."""
    early = exposures[(exposures["ts_ms"] < window.before_ms) & exposures["viewer"].isin(viewers)]
    if early.empty:
        return {}, 0
    local = pd.to_datetime(early["ts_ms"], unit="ms", utc=True).dt.tz_convert(window.timezone)
    # Without its zone, because a day may have no midnight there, or two.
    days = local.dt.tz_localize(None).dt.normalize().groupby(early["viewer"])
    past = events[events["ts_ms"] < window.before_ms].groupby("viewer")[list(EVENT_SUMS)].sum()
    sums = past.assign(exposures=0).reindex(viewers, fill_value=0)
    sums["exposures"] = days.size().reindex(viewers, fill_value=0)
    sums["active_days"] = days.nunique().reindex(viewers, fill_value=0)
    before = {name + BEFORE: sums[name].to_numpy(np.float64) for name in SUMS}
    return before, int((sums["exposures"] > 0).sum())
