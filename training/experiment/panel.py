"""What each viewer of an experiment did on each day. Letters: N exposures, E events, V viewers, C viewer-days."""

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
BEFORE = "_before"  # ends the names of sums of before the experiment
MINUTE_MS, DAY_MS = 60_000.0, 86_400_000
I16 = NDArray[np.int16]


@dataclass(frozen=True)
class Panel:
    """Viewers by the arm of their first exposure in the window, in the order in which they came.

    `sums` has a number for each viewer and day with an exposure; `before` one for each viewer, all zero where they
    were not seen before, and nothing where none was.
    """

    arm: I8  # [V], into the exposures' arms
    came: I16  # [V], the day of the first exposure
    soon: NDArray[np.bool_]  # [V], whether that was within 24 hours of the first one of all
    viewer: I64  # [C], into the V
    day: I16  # [C]
    sums: Mapping[str, F64]  # [C]
    before: Mapping[str, F64]  # [V]
    crossing: NDArray[np.bool_]  # [V], seen in a second arm too
    num_seen_before: int
    num_unattributed: int  # events that fit no exposure

    def rows(self, arms: tuple[int, ...]) -> NDArray[np.bool_]:
        """[V]: the viewers of these arms."""
        return np.asarray(np.isin(self.arm, arms))

    def by_day(self) -> Iterator[tuple[int, dict[str, F64]]]:
        """For each day, what each viewer's sums have come to by its end, `[V]` each; filled in place."""
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
        """Each viewer's sums over the window, `[V]` each, and those of before."""
        size = len(self.arm)
        sums = {name: _summed(self.viewer, self.sums[name], size) for name in SUMS}
        return {**sums, **self.before}


def panel(exposures: Exposures, events: Events, window: Window) -> Panel:
    """The panel of a window; `exposures` as read, those of before and of other experiments too."""
    ours = exposures.rows((exposures.arm != NONE) & window.holds(exposures.ts_ms))
    codes, viewers = pd.factorize(ours.viewer)  # numbered as they first come
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
    """[E]: of each join the minutes until the same viewer leaves the same candidate, 0 of all else.

    A join that no leave follows before the next join counts nothing: nobody knows how long it was.
    """
    minutes = np.zeros(len(events))
    rows = np.flatnonzero(events.of(JOIN) | events.of(LEAVE))
    rows = rows[np.lexsort((rows, events.candidate[rows], events.viewer[rows]))]  # rows are in order of time
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
    """[E]: the viewer-day that an event counts for, and whether there is one.

    By the ranking that it names; without one, that of its own viewer and day, if it comes after the viewer did.
    """
    named = pd.Index(np.unique(events.request[events.request != 0]))
    wanted = named.get_indexer(
        pd.Index(ours.request)
    )  # the events are fewer: theirs is the table to look up in
    exposure = np.full(len(named) + 1, NONE, np.int64)
    exposure[wanted[wanted >= 0]] = np.flatnonzero(wanted >= 0)
    at = exposure[named.get_indexer(pd.Index(events.request))]  # the last one where there is none
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
    """Each viewer's sums of before the experiment; none where nobody was seen then."""
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
