"""The window of analysis: the last period in which several arms had viewers at constant shares.

Before it lies the pre-period, in which none of the arms can have changed behaviour. CUPED adjusts
effects by the viewers' behaviour in that time. If the treatment had changed that behaviour, the
adjustment would remove part of the effect (Deng, Xu, Kohavi and Walker 2013, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from serve.contract.errors import TabrankError
from training.experiment.declared import Declared

# Two assignments count as dependent below this p-value of a test of independence.
DEPENDENT_P = 0.001
# An arm with at least this share has all viewers. The margin covers rounding.
ALL_VIEWERS = 1.0 - 1e-9
# Replicas take up new shares within seconds of each other. Exposures with old shares are ignored
# for this long after a change. Later ones are ignored while they are few: the limits are below.
TAKEN_UP_MS = 60_000
FEW, STRAGGLERS = 30, 0.01
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Window:
    """The time of analysis, from `start_ms` to before `end_ms`.

    Attributes:
        end_ms: the declared end, the midnight after the last exposure, or an earlier end for the
            reason `closed`.
        midnights_ms: the starts of its days, in UTC; the first one is before `start_ms`.
        first_ms, last_ms: the times of its first and last exposures.
        before_ms: the end of the pre-period. No arm can have changed what happened before it, which
            is used for adjustment only.
        assigned_alike: earlier experiments whose assignment depends on this one's. They are not
            part of the pre-period.
        changed: whether the shares were different before the window.
    """

    start_ms: int
    first_ms: int
    last_ms: int
    end_ms: int
    before_ms: int
    assigned_alike: tuple[str, ...]
    changed: bool
    closed: str | None
    midnights_ms: tuple[int, ...]

    @property
    def days(self) -> list[str]:
        """Return the dates."""
        return [datetime.fromtimestamp(ms / 1e3, UTC).date().isoformat() for ms in self.midnights_ms]

    def day(self, ts_ms: pd.Series[int]) -> NDArray[np.int64]:
        """Return [N] the number of each time's day, from 0."""
        return np.searchsorted(self.midnights_ms, ts_ms, side="right") - 1

    def whole_days(self, end_ms: int) -> int:
        """Return how many times 24 hours lie between the first exposure and an end.

        95 % of a day counts as a whole day.
        """
        return int((end_ms - self.first_ms) / DAY_MS + 0.05)

    def holds(self, ts_ms: pd.Series[int]) -> pd.Series[bool]:
        """Return flags [N] of the times in the window."""
        return ts_ms.between(self.start_ms, self.end_ms, inclusive="left")


def window(exposures: pd.DataFrame, declaration: Declared) -> Window:
    """Return the window of an experiment.

    `exposures` are in the order of time and include other experiments. The window only contains
    exposures of a time when no arm had all viewers. It begins after an earlier time when one arm
    had all viewers, and after the last exposure whose share differs from the latest share of its
    arm. It ends when one arm gets all viewers again, as happens when a winner is shipped.

    Raises:
        TabrankError: no exposure is in the window.
    """
    ours, bound_ms, closed = exposures[exposures["ours"]], declaration.end_ms or np.inf, None
    ours = ours[ours["ts_ms"].between(declaration.start_ms or 0, bound_ms, inclusive="left")]
    if ours.empty:
        given = {"from": (declaration.start_ms, "start"), "before": (declaration.end_ms, "end")}
        bounds = [
            f"{when} {utc(ms)} ({name} in {declaration.source})" for when, (ms, name) in given.items() if ms
        ]
        raise TabrankError(f"no exposure of {declaration.name} {' and '.join(bounds)}; correct these times")
    is_alone = ours["share"] >= ALL_VIEWERS
    alone_ms, ours = ours["ts_ms"][is_alone], ours[~is_alone]
    if ours.empty:
        raise TabrankError(f"{declaration.name}: one arm always had all viewers; give a second arm a share")
    changed_ms, shipped_ms = _last_stretch(ours, alone_ms)
    start_ms = changed_ms or declaration.start_ms or int(ours["ts_ms"].iloc[0])
    if shipped_ms is not None and shipped_ms < bound_ms:
        bound_ms, closed = shipped_ms, "one arm has all viewers from then on"
    ours_ms = ours["ts_ms"][ours["ts_ms"].between(start_ms, bound_ms, inclusive="left")]
    if ours_ms.empty:
        raise TabrankError(f"shares of {declaration.name} changed at the last exposure; wait for later ones")
    first_ms, last_ms = int(ours_ms.iloc[0]), int(ours_ms.iloc[-1])
    next_midnight = (last_ms // DAY_MS + 1) * DAY_MS
    days = tuple(range(start_ms // DAY_MS * DAY_MS, next_midnight, DAY_MS))
    end_ms = int(min(next_midnight, bound_ms))
    before_ms, alike = _pre_period_end(exposures, start_ms)
    changed = changed_ms is not None
    return Window(start_ms, first_ms, last_ms, end_ms, before_ms, alike, changed, closed, days)


def _last_stretch(shared: pd.DataFrame, alone_ms: pd.Series[int]) -> tuple[int | None, int | None]:
    """Return when the shares were last changed, and when one arm got all viewers after that.

    `shared` holds the exposures at shares below 1, and `alone_ms` the times of those at a share of
    1. A result is None if that did not happen.
    """
    latest = shared.groupby("arm", observed=True)["share"].transform("last")
    # From each shared exposure on, the number of exposures at a share of 1, and of shared ones.
    since = len(alone_ms) - np.searchsorted(alone_ms, shared["ts_ms"])
    num_shared = np.arange(len(shared), 0, -1)
    is_common = num_shared >= np.maximum(STRAGGLERS * (since + num_shared), FEW)
    last_ms = shared["ts_ms"][is_common if is_common.any() else slice(None)].iloc[-1]
    is_shipped = bool(alone_ms.max() > last_ms)
    earlier_ms = alone_ms[alone_ms < last_ms - is_shipped * TAKEN_UP_MS]
    stale_ms = pd.concat([shared["ts_ms"][(shared["share"] - latest).abs() > 1e-9], earlier_ms])
    changed_ms = None if stale_ms.empty else int(stale_ms.max()) + 1
    shipped_ms = int(alone_ms[alone_ms >= (changed_ms or 0)].min()) if is_shipped else None
    return changed_ms, shipped_ms


def _pre_period_end(exposures: pd.DataFrame, start_ms: int) -> tuple[int, tuple[str, ...]]:
    """Return the end of the pre-period, and the earlier experiments that end it early.

    It ends at the start of the window, or earlier when the first viewer was assigned to one of
    several arms. An arm with all viewers does not count. An earlier experiment with another salt
    affects both arms in the same way, so it is part of the pre-period. An experiment with the same
    salt is not, because its assignment depends on ours.
    """
    # An exposure whose share the log does not hold counts as assigned.
    assigned = exposures[~(exposures["share"] >= ALL_VIEWERS)]
    ours = assigned[assigned["ours"]]
    end_ms = min([start_ms, *ours["ts_ms"].head(1)])
    arm_of = ours.drop_duplicates("viewer").set_index("viewer")["arm"]
    early = assigned[~assigned["ours"] & (assigned["ts_ms"] < end_ms)]
    alike = {}
    for name, theirs in early.groupby("experiment", observed=True):
        first = theirs.drop_duplicates("viewer").set_index("viewer")["arm"]
        # Pearson's χ² test with the viewers of both experiments.
        table = pd.crosstab(first.astype(str).fillna(""), arm_of.reindex(first.index))
        if min(table.shape) > 1 and chi2_contingency(table, correction=False).pvalue < DEPENDENT_P:
            alike[str(name)] = int(theirs["ts_ms"].iloc[0])
    return min([end_ms, *alike.values()]), tuple(sorted(alike))


def partial_days(window: Window) -> list[str]:
    """Return the days of which the window covers less than 95 %: perhaps the first and the last."""
    begin = np.array(window.midnights_ms)
    covered_ms = np.minimum(begin + DAY_MS, window.last_ms) - np.maximum(begin, window.start_ms)
    return [day for day, ms in zip(window.days, covered_ms, strict=True) if ms / DAY_MS < 0.95]


def utc(ms: int) -> str:
    """Format a time in UTC."""
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
