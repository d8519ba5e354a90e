"""Read a load trace: offered requests per second over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from serve.contract.errors import TabrankError

TIME, RATE = "t_s", "offered_rps"
# Limits the computing time to a minute.
MAX_SECONDS = 7 * 86_400


@dataclass(frozen=True)
class Trace:
    """Load trace: `offered_rps[i]` applies from `t_s[i]`.

    The last row lasts as long as the one before.
    """

    t_s: tuple[float, ...]
    offered_rps: tuple[float, ...]

    @property
    def seconds(self) -> int:
        """Return how long the trace lasts; a second that has begun counts."""
        return math.ceil(round(2 * self.t_s[-1] - self.t_s[-2] - self.t_s[0], 6))

    def rates_rps(self) -> list[float]:
        """Return the rate at the beginning of each second of the trace."""
        at_s = self.t_s[0] + np.arange(self.seconds)
        rows = np.searchsorted(self.t_s, at_s, side="right") - 1
        return [self.offered_rps[row] for row in rows]


def shown(at_s: float) -> str:
    """Return a time as text, with all digits of a Unix time."""
    return f"{round(at_s, 3):.15g}"


def read_trace(path: Path) -> Trace:
    """Read a CSV with the columns `t_s` and `offered_rps` strictly; ignore other columns.

    Raise TabrankError naming the file, the row and the column.
    """
    columns = {TIME: pa.float64(), RATE: pa.float64()}
    # No text is read as a missing number.
    options = csv.ConvertOptions(include_columns=[*columns], column_types=columns, null_values=[])
    try:
        # Threads would not know the numbers of the rows that are refused.
        table = csv.read_csv(path, csv.ReadOptions(use_threads=False), convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise TabrankError(
            f"{path}: {error}; name a CSV with numbers in the columns {TIME} and {RATE}"
        ) from None
    if len(table) < 2:
        raise TabrankError(
            f"{path}: {len(table)} rows; at least two are needed: the last lasts as long as the one before"
        )
    times_s, rates_rps = (table[name].to_numpy() for name in columns)
    gaps_s = np.diff(times_s, prepend=times_s[0] - 1)
    for name, values, is_valid, valid in (
        (TIME, times_s, (gaps_s > 0) & np.isfinite(gaps_s), "above the row before"),
        (RATE, rates_rps, (rates_rps >= 0) & np.isfinite(rates_rps), "0 or more"),
    ):
        if not is_valid.all():
            row = int(is_valid.argmin())
            # The header is row 1.
            raise TabrankError(f"{path}: row {row + 2}: column {name}: {shown(values[row])} must be {valid}")
    trace = Trace(tuple(times_s.tolist()), tuple(rates_rps.tolist()))
    if trace.seconds > MAX_SECONDS:
        raise TabrankError(
            f"{path}: lasts {trace.seconds:,} s; at most {MAX_SECONDS:,} s are planned: shorten it"
        )
    return trace
