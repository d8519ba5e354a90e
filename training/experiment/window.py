"""Window of analysis: from an experiment's start or last change of shares on, by calendar days.

Before it is the pre-period, the time in which none of the arms can have changed behaviour. CUPED
adjusts by the viewers' behaviour in that time. A covariate that the treatment has changed would
remove part of the effect (Deng, Xu, Kohavi and Walker 2013, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from serve.contract.errors import TabrankError
from training.experiment.declared import Declared

# Treat two assignments as dependent below this p-value of the independence test.
DEPENDENT_P = 0.001
# An arm with this share has all viewers; the margin covers rounding.
ALL_VIEWERS = 1.0 - 1e-9


@dataclass(frozen=True)
class Window:
    """Time of analysis, from `start_ms` to before `end_ms`.

    `end_ms` is the declared end or the midnight after the last exposure.

    `midnights_ms` are the starts of its days, the first one before `start_ms`. The last exposure
    was at `last_ms`. No arm can have changed what happened before `before_ms`, which serves only
    for adjustment. `assigned_alike` are earlier experiments with a dependent assignment, which
    are therefore not before it. `changed` says that the shares were different before the window.
    """

    start_ms: int
    last_ms: int
    end_ms: int
    before_ms: int
    assigned_alike: tuple[str, ...]
    changed: bool
    midnights_ms: tuple[int, ...]
    timezone: str

    @property
    def days(self) -> list[str]:
        """Return the dates in the time zone."""
        zone = ZoneInfo(self.timezone)
        return [datetime.fromtimestamp(ms / 1e3, zone).date().isoformat() for ms in self.midnights_ms]

    def day(self, ts_ms: pd.Series[int]) -> NDArray[np.int64]:
        """Return [N] the number of each time's day, from 0."""
        return np.searchsorted(self.midnights_ms, ts_ms, side="right") - 1

    def holds(self, ts_ms: pd.Series[int]) -> pd.Series[bool]:
        """Return flags [N] of the times in the window."""
        return ts_ms.between(self.start_ms, self.end_ms, inclusive="left")


def window(exposures: pd.DataFrame, declaration: Declared, timezone: str) -> Window:
    """Return the window of an experiment.

    `exposures` are in order of time and include other experiments. The window begins after the
    last exposure with a share that differs from its arm's latest one.

    Raises:
        TabrankError: the time zone is unknown, or no exposure is in the window.
    """
    ours = exposures[exposures["ours"]]
    bounds_ms = declaration.start_ms or 0, declaration.end_ms or np.inf
    ours = ours[ours["ts_ms"].between(*bounds_ms, inclusive="left")]
    if ours.empty:
        raise TabrankError(
            f"the log holds no exposure of {declaration.name} between its start and end in {declaration.source}"
        )
    latest = ours.groupby("arm", observed=True)["share"].transform("last")
    stale_ms = ours["ts_ms"][(ours["share"] - latest).abs() > 1e-9]
    changed = not stale_ms.empty
    start_ms = int(stale_ms.max() + 1 if changed else declaration.start_ms or ours["ts_ms"].min())
    last_ms = int(ours["ts_ms"].max())
    if last_ms < start_ms:
        raise TabrankError(
            f"the arms' shares of {declaration.name} changed at the log's last exposure; wait for later ones"
        )
    *midnights, next_midnight = _midnights(start_ms, last_ms, timezone)
    end_ms = min(next_midnight, declaration.end_ms or next_midnight)
    before_ms, alike = _pre_period_end(exposures, start_ms)
    return Window(start_ms, last_ms, end_ms, before_ms, alike, changed, tuple(midnights), timezone)


def _pre_period_end(exposures: pd.DataFrame, start_ms: int) -> tuple[int, tuple[str, ...]]:
    """Return the end of the pre-period, and the earlier experiments that end it early.

    It ends at the start of the window, or at the first viewer assigned to one of several arms if
    that is earlier. An arm with all viewers does not count. An earlier experiment with another
    salt has the same effect in both arms and is part of the pre-period. One whose assignment
    depends on ours (the same salt) is not.
    """
    # A share that the log does not hold counts as assigned.
    assigned = exposures[~(exposures["share"] >= ALL_VIEWERS)]
    ours = assigned[assigned["ours"]]
    end_ms = min([start_ms, *ours["ts_ms"].head(1)])
    arm_of = ours.drop_duplicates("viewer").set_index("viewer")["arm"]
    early = assigned[~assigned["ours"] & (assigned["ts_ms"] < end_ms)]
    alike = {}
    for name, theirs in early.groupby("experiment", observed=True):
        first = theirs.drop_duplicates("viewer").set_index("viewer")["arm"]
        # Pearson's χ² test on the viewers of both experiments.
        table = pd.crosstab(first.astype(str).fillna(""), arm_of.reindex(first.index))
        if min(table.shape) > 1 and chi2_contingency(table, correction=False).pvalue < DEPENDENT_P:
            alike[str(name)] = int(theirs["ts_ms"].iloc[0])
    return min([end_ms, *alike.values()]), tuple(sorted(alike))


def _midnights(start_ms: int, last_ms: int, timezone: str) -> tuple[int, ...]:
    """Return the midnights of the days between two times, and the one after."""
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise TabrankError(
            f"--timezone {timezone}: unknown; write a name such as UTC or Europe/Berlin"
        ) from None
    first = datetime.fromtimestamp(start_ms / 1e3, zone).date()
    last = datetime.fromtimestamp(last_ms / 1e3, zone).date()
    days = (first + timedelta(days=i) for i in range((last - first).days + 2))
    return tuple(int(datetime.combine(day, time(), zone).timestamp() * 1e3) for day in days)


def partial_days(window: Window) -> list[str]:
    """Return the days that the window covers by less than 95 %, which may be the first and last."""
    # Compare with real midnights, because a day may have 23 hours.
    bounds = np.array(_midnights(window.midnights_ms[0], window.midnights_ms[-1], window.timezone))
    covered_ms = np.diff(np.clip(bounds, window.start_ms, window.last_ms))
    is_partial = covered_ms / np.diff(bounds) < 0.95
    return [day for day, partial in zip(window.days, is_partial, strict=True) if partial]


def utc(ms: int) -> str:
    """Format a time in UTC."""
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
