"""Read a load trace: offered requests per second over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from serve.contract.errors import TabrankError

TIME, RATE = "t_s", "offered_rps"
# Limits the computing time to a minute.
MAX_SECONDS = 7 * 86_400


class Trace(NamedTuple):
    """Load trace: the offered rates at the beginning of each second from `begin_s` on."""

    begin_s: float
    rates_rps: list[float]


def shown(at_s: float) -> str:
    """Return a time as text, with all digits of a Unix time."""
    return f"{round(at_s, 3):.15g}"


def read_trace(path: Path) -> Trace:
    """Read a CSV with the columns `t_s` and `offered_rps` strictly; ignore other columns.

    Raise TabrankError naming the file, the row and the column.
    """
    columns = {TIME: pa.float64(), RATE: pa.float64()}
    # No text counts as a missing number, so that every bad cell is refused.
    options = csv.ConvertOptions(include_columns=[*columns], column_types=columns, null_values=[])
    try:
        # With threads, the error would not name the row that is refused.
        table = csv.read_csv(path, csv.ReadOptions(use_threads=False), convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise TabrankError(
            f"{path}: {error}; name a CSV with numbers in the columns {TIME} and {RATE}"
        ) from None
    if len(table) < 2:
        raise TabrankError(
            f"{path}: {len(table)} rows; at least two are needed, because the last row lasts as long as the one before"
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
    begin_s = float(times_s[0])
    # The last row lasts as long as the one before. A second that has begun counts as a whole one.
    seconds = math.ceil(round(2 * times_s[-1] - times_s[-2] - begin_s, 6))
    if seconds > MAX_SECONDS:
        raise TabrankError(f"{path}: lasts {seconds:,} s; at most {MAX_SECONDS:,} s are planned: shorten it")
    rows = np.searchsorted(times_s, begin_s + np.arange(seconds), side="right") - 1
    return Trace(begin_s, rates_rps[rows].tolist())
