"""Read a load trace: offered requests per second over time."""

from __future__ import annotations

import contextlib
import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.contract.errors import TabrankError, did_you_mean

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

    Raise TabrankError naming the file, the line, the column and the remedy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _rows(path, csv.DictReader(file, strict=True))
    except OSError as error:
        raise TabrankError(
            f"{path}: {error.strerror or 'unreadable'}; name a CSV with the columns {TIME} and {RATE}"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TabrankError(f"{path}: not a CSV in UTF-8: {error}") from None
    if len(rows) < 2:
        raise TabrankError(
            f"{path}: {len(rows)} rows; at least two are needed: the last lasts as long as the one before"
        )
    times_s, rates_rps = zip(*rows, strict=True)
    trace = Trace(times_s, rates_rps)
    if trace.seconds > MAX_SECONDS:
        raise TabrankError(
            f"{path}: lasts {trace.seconds:,} s; at most {MAX_SECONDS:,} s are planned: shorten it"
        )
    return trace


def _rows(path: Path, reader: csv.DictReader[str]) -> list[tuple[float, float]]:
    """Return time and rate of each row."""
    names = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    for name in (TIME, RATE):
        if name not in names:
            raise TabrankError(_missing(path, name, names))
        if names.count(name) > 1:
            raise TabrankError(f"{path}:1: the column {name!r} appears twice; remove one")
    rows: list[tuple[float, float]] = []
    for fields in reader:
        where = f"{path}:{reader.line_num}"
        if None in fields:
            raise TabrankError(f"{where}: more fields than columns; write a thousand as 1000")
        time_s, rate_rps = (_number(fields[name], f"{where}: column {name}") for name in (TIME, RATE))
        if rows and time_s <= rows[-1][0]:
            raise TabrankError(
                f"{where}: column {TIME}: {shown(time_s)} must be above {shown(rows[-1][0])}, the row before"
            )
        if rate_rps < 0:
            raise TabrankError(f"{where}: column {RATE}: {rate_rps:g} must be 0 or more")
        rows.append((time_s, rate_rps))
    return rows


def _number(text: str | None, where: str) -> float:
    if not (text or "").strip():
        raise TabrankError(f"{where} is missing")
    with contextlib.suppress(ValueError):
        value = float(text or "")
        if math.isfinite(value):
            return value
    raise TabrankError(f"{where}: {text!r} is not a number")


def _missing(path: Path, name: str, columns: list[str]) -> str:
    if not columns:
        return f"{path}:1: empty; the first line names the columns, {TIME},{RATE}"
    for column in columns:
        if column not in (TIME, RATE) and (hint := did_you_mean(column, [name])):
            return f"{path}:1: unknown key {column!r}{hint}"
    return f"{path}:1: the column {name} is missing; there are {', '.join(columns)}"
