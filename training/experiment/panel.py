"""Panel of an experiment: sums of each viewer by day.

Letters: N exposures, E events, V viewers, C viewer-days.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.experiment.served_log import F64, I8, I64, NONE, Events, Exposures
from training.experiment.window import Window

CLICK, JOIN, LEAVE = "click", "join", "leave"
SUMS = ("exposures", "active_days", "clicks", "joins", "minutes")
# Suffix of the names of sums over the pre-period.
BEFORE = "_before"
MINUTE_MS, DAY_MS = 60_000.0, 86_400_000
I16 = NDArray[np.int16]


@dataclass(frozen=True)
class Panel:
    """Viewers by the arm of their first exposure in the window, in order of that exposure.

    `arm` [V] are codes of `Exposures.arms`, `first_day` [V] the day of the first exposure,
    `in_first_24h` [V] whether it was within 24 hours of the first exposure of all. `viewer` [C]
    are indices into V, `sums` [C] a number for each viewer-day with an exposure. `before` [V]
    are sums over the pre-period, 0 for new viewers, and empty if all are new. `crossing` [V] marks
    viewers with exposures in a second arm. `num_unattributed` counts events without an exposure.
    """

    arm: I8
    first_day: I16
    in_first_24h: NDArray[np.bool_]
    viewer: I64
    day: I16
    sums: Mapping[str, F64]
    before: Mapping[str, F64]
    crossing: NDArray[np.bool_]
    num_seen_before: int
    num_unattributed: int

    def rows(self, arms: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return flags [V] of the viewers of these arms."""
        return np.asarray(np.isin(self.arm, arms))

    def by_day(self) -> Iterator[tuple[int, dict[str, F64]]]:
        """Yield each day with the viewers' cumulative sums [V] at its end, updated in place."""
        order = np.argsort(self.day, kind="stable")
        ends = np.searchsorted(self.day[order], np.arange(int(self.day.max(initial=0)) + 1), side="right")
        running = {name: np.zeros(len(self.arm)) for name in SUMS}
        start = 0
        for day, end in enumerate(ends):
            cells = order[start:end]
            for name in SUMS:
                running[name][self.viewer[cells]] += self.sums[name][cells]
            yield day, running
            start = end

    def totals(self) -> dict[str, F64]:
        """Return the viewers' sums [V] over the window, and those of the pre-period."""
        size = len(self.arm)
        sums = {name: _summed(self.viewer, self.sums[name], size) for name in SUMS}
        return {**sums, **self.before}


def panel(exposures: Exposures, events: Events, window: Window) -> Panel:
    """Build the panel of a window from all exposures, also earlier ones and other experiments."""
    ours = exposures.rows((exposures.arm != NONE) & window.holds(exposures.ts_ms))
    # Number the viewers in order of their first exposure.
    codes, viewers = pd.factorize(ours.viewer)
    num_viewers, num_days = len(viewers), len(window.midnights_ms)
    first = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))
    arm, days = ours.arm[first], window.day(ours.ts_ms)
    crossing = np.zeros(num_viewers, bool)
    crossing[codes[ours.arm != arm[codes]]] = True

    keys, cell, num_exposures = np.unique(
        codes.astype(np.int64) * num_days + days, return_inverse=True, return_counts=True
    )
    minutes = listened(events)
    row, fits = _cells(ours, cell, events, viewers, codes, keys, window, ours.ts_ms[first])
    sums = {"exposures": num_exposures.astype(np.float64), "active_days": np.ones(len(keys))}
    for name, weight in _weights(events, minutes).items():
        sums[name] = _summed(row[fits], weight[fits], len(keys))
    before, num_seen_before = _before(exposures, events, minutes, viewers, window)
    counted = events.of(CLICK) | events.of(JOIN)
    in_window = window.holds(events.ts_ms)
    return Panel(
        arm,
        days[first],
        ours.ts_ms[first] < ours.ts_ms[0] + DAY_MS,
        keys // num_days,
        (keys % num_days).astype(np.int16),
        sums,
        before,
        crossing,
        num_seen_before,
        int((counted & in_window & ~fits).sum()),
    )


def listened(events: Events) -> F64:
    """Return [E] the minutes from each join to the same viewer's leave of the candidate, else 0.

    A join without a leave before the next join counts 0, because its duration is unknown.
    """
    minutes = np.zeros(len(events))
    rows = np.flatnonzero(events.of(JOIN) | events.of(LEAVE))
    # Sort by viewer and candidate; within both, the rows stay in order of time.
    rows = rows[np.lexsort((rows, events.candidate[rows], events.viewer[rows]))]
    joins, leaves = rows[:-1], rows[1:]
    pairs = (
        (events.viewer[joins] == events.viewer[leaves])
        & (events.candidate[joins] == events.candidate[leaves])
        & events.of(JOIN)[joins]
        & events.of(LEAVE)[leaves]
    )
    minutes[joins[pairs]] = (events.ts_ms[leaves[pairs]] - events.ts_ms[joins[pairs]]) / MINUTE_MS
    return minutes


def _weights(events: Events, minutes: F64) -> dict[str, F64]:
    clicks, joins = (events.of(kind).astype(np.float64) for kind in (CLICK, JOIN))
    return {"clicks": clicks, "joins": joins, "minutes": minutes}


def _cells(
    ours: Exposures,
    cell: I64,
    events: Events,
    viewers: NDArray[np.uint64],
    codes: I64,
    keys: I64,
    window: Window,
    came_ms: I64,
) -> tuple[I64, NDArray[np.bool_]]:
    """Return [E] the viewer-day that an event counts for, and whether there is one.

    An event counts for the request that it names. Without a request it counts for its viewer and
    day, if it is not before the viewer's first exposure.
    """
    named = pd.Index(np.unique(events.request[events.request != 0]))
    # Build the look-up table from the events, because they are fewer than the exposures.
    wanted = named.get_indexer(pd.Index(ours.request))
    exposure = np.full(len(named) + 1, NONE, np.int64)
    exposure[wanted[wanted >= 0]] = np.flatnonzero(wanted >= 0)
    # Index −1 selects the last element, which stands for no exposure.
    at = exposure[named.get_indexer(pd.Index(events.request))]
    row = np.where(at >= 0, cell[at] if len(cell) else NONE, NONE)

    of_none = events.request == 0
    who = pd.Index(viewers).get_indexer(pd.Index(events.viewer))
    key = who.astype(np.int64) * len(window.midnights_ms) + window.day(events.ts_ms)
    found = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    known = of_none & (who >= 0) & window.holds(events.ts_ms) & (keys[found] == key)
    known &= events.ts_ms >= came_ms[who]
    row = np.where(of_none, np.where(known, found, NONE), row)
    return np.asarray(row, np.int64), np.asarray(row >= 0)


def _before(
    exposures: Exposures, events: Events, minutes: F64, viewers: NDArray[np.uint64], window: Window
) -> tuple[dict[str, F64], int]:
    """Return the viewers' sums over the pre-period, and how many viewers have an exposure in it."""
    index = pd.Index(viewers)
    early = exposures.rows(exposures.ts_ms < window.before_ms)
    who = index.get_indexer(pd.Index(early.viewer))
    known = who >= 0
    if not known.any():
        return {}, 0
    size = len(viewers)
    sums = {"exposures": _summed(who[known], np.ones(int(known.sum())), size)}
    days = early.ts_ms[known] // DAY_MS
    seen = np.unique(np.stack([who[known], days]), axis=1)
    sums["active_days"] = _summed(seen[0], np.ones(len(seen[0])), size)
    whose = index.get_indexer(pd.Index(events.viewer))
    past = (whose >= 0) & (events.ts_ms < window.before_ms)
    for name, weight in _weights(events, minutes).items():
        sums[name] = _summed(whose[past], weight[past], size)
    return {name + BEFORE: values for name, values in sums.items()}, int((sums["exposures"] > 0).sum())


def _summed(to: NDArray[Any], weights: F64, size: int) -> F64:
    return np.bincount(to, weights=weights, minlength=size).astype(np.float64)
