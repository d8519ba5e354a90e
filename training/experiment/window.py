"""Window of analysis: from an experiment's start or last change of shares on, by calendar days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from training.experiment.declared import Declared
from training.experiment.pre_period import pre_period_end
from training.experiment.served_log import I64, NONE, Exposures


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

    def day(self, ts_ms: I64) -> NDArray[np.int16]:
        """Return [N] the number of each time's day, from 0."""
        return np.asarray(np.searchsorted(self.midnights_ms, ts_ms, side="right") - 1, np.int16)

    def holds(self, ts_ms: I64) -> NDArray[np.bool_]:
        """Return flags [N] of the times in the window."""
        return np.asarray((ts_ms >= self.start_ms) & (ts_ms < self.end_ms))


def window(exposures: Exposures, declaration: Declared, timezone: str) -> Window:
    """Return the window of an experiment.

    `exposures` are in order of time and include other experiments. The window begins after the
    last exposure with a share that differs from its arm's latest one.

    Raises:
        TabrankError: the time zone is unknown, or no exposure is in the window.
    """
    ours = exposures.rows(exposures.arm != NONE)
    after = ours.ts_ms >= (declaration.start_ms or 0)
    before_end = ours.ts_ms < (declaration.end_ms or np.iinfo(np.int64).max)
    ours = ours.rows(after & before_end)
    if not len(ours):
        raise TabrankError(
            f"the log holds no exposure of {declaration.name} between its start and end in {declaration.source}"
        )
    start_ms = int(declaration.start_ms or ours.ts_ms[0])
    stale = np.zeros(len(ours), bool)
    for arm in np.unique(ours.arm):
        of_arm = (ours.arm == arm) & np.isfinite(ours.share)
        if of_arm.any():
            last = ours.share[of_arm][-1]
            stale |= of_arm & (np.abs(ours.share - last) > 1e-9)
    if stale.any():
        start_ms = int(ours.ts_ms[np.flatnonzero(stale)[-1]]) + 1
    last_ms = int(ours.ts_ms[-1])
    if last_ms < start_ms:
        raise TabrankError(
            f"the arms' shares of {declaration.name} changed at the log's last exposure; wait for later ones"
        )
    *midnights, next_midnight = _midnights(start_ms, last_ms, timezone)
    end_ms = min(next_midnight, declaration.end_ms or next_midnight)
    before_ms, alike = pre_period_end(exposures, start_ms)
    changed = bool(stale.any())
    return Window(start_ms, last_ms, end_ms, before_ms, alike, changed, tuple(midnights), timezone)


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
    return tuple(_midnight(first + timedelta(days=i), zone) for i in range((last - first).days + 2))


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() * 1e3)


def partial_days(window: Window) -> list[str]:
    """Return the days that the window covers by less than 95 %, which may be the first and last."""
    days = window.days
    # Compare with real midnights, because a day may have 23 hours.
    bounds = _midnights(window.midnights_ms[0], window.midnights_ms[-1], window.timezone)
    covered = [
        (min(window.last_ms, bounds[i + 1]) - max(window.start_ms, bounds[i])) / (bounds[i + 1] - bounds[i])
        for i in range(len(days))
    ]
    return [day for day, share in zip(days, covered, strict=True) if share < 0.95]


def utc(ms: int) -> str:
    """Format a time in UTC."""
    return datetime.fromtimestamp(ms / 1e3, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
