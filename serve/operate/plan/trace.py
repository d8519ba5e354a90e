"""A load trace: how many requests a second are offered, from when on; and what a real run counted beside it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from serve.contract.errors import TabrankError, unknown_key

TIME, RATE = "t_s", "offered_rps"
REPLICAS, NODES = "_replicas", "nodes"
MAX_REQUESTS = 5_000_000  # some minutes of computing
MAX_SECONDS = 86_400  # likewise: Ray is asked ten times in each, loaded or not
MAX_PHASES = 12


@dataclass(frozen=True)
class Phase:
    """A stretch of the trace that is reported on one line, from `begin_s` up to `end_s`."""

    name: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Trace:
    """`offered_rps[i]` is offered from `t_s[i]` on; the last row lasts as long as the one before it.

    `counted` holds what a real run's timeline says beside it, by column (`Scorer_replicas`, `nodes`); nan: nothing.
    """

    t_s: tuple[float, ...]
    offered_rps: tuple[float, ...]
    counted: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When the last row ends."""
        return 2 * self.t_s[-1] - self.t_s[-2]

    @property
    def num_requests(self) -> int:
        """How many requests are offered in all."""
        return round(float(np.dot(self.offered_rps, np.diff([*self.t_s, self.end_s]))))

    def rate_rps(self, at_s: float) -> float:
        """What is offered at a time."""
        return self.offered_rps[max(int(np.searchsorted(self.t_s, at_s, side="right")) - 1, 0)]

    @property
    def num_turns(self) -> int:
        """How often the load turns from rising to falling or back; what is less than a fifth of its peak is noise."""
        turns, low, high, rising = 0, self.offered_rps[0], self.offered_rps[0], None
        least = max(self.offered_rps) / 5
        for rate in self.offered_rps:
            low, high = min(low, rate), max(high, rate)
            if rising is not False and rate < high - least:
                turns, rising, low = turns + (rising is not None), False, rate
            elif rising is not True and rate > low + least:
                turns, rising, high = turns + (rising is not None), True, rate
        return turns

    def arrivals(self, rng: np.random.Generator) -> list[float]:
        """The seconds at which requests come, ascending: a Poisson process given each row's count.

        A row has the count that its rate expects, what is left of a request carried over to the next one.
        """
        begins = np.asarray(self.t_s)
        lasts = np.diff([*self.t_s, self.end_s])
        counts = np.diff(np.round(np.cumsum(np.concatenate([[0.0], lasts * self.offered_rps])))).astype(int)
        row = np.repeat(np.arange(len(begins)), counts)
        return list(np.sort(begins[row] + rng.random(len(row)) * lasts[row]).tolist())

    def phases(self) -> list[Phase]:
        """Each row, where they are few; twelve equal stretches, where they are many."""
        bounds = [*self.t_s, self.end_s]
        if len(self.t_s) > MAX_PHASES:
            bounds = [float(bound) for bound in np.linspace(self.t_s[0], self.end_s, MAX_PHASES + 1)]
        return [
            Phase(f"{_rounded(begin, end - begin)}–{_rounded(end, end - begin)} s", begin, end)
            for begin, end in pairwise(bounds)
        ]


def shown(at_s: float) -> str:
    """A time as it is written: a Unix time too has all its digits."""
    return f"{round(at_s, 3):.15g}"


def _rounded(at_s: float, stretch_s: float) -> str:
    return shown(round(at_s, 1) if stretch_s >= 0.1 else at_s)


def read_trace(path: Path) -> Trace:
    """Read a CSV with the columns `t_s` and `offered_rps`, strictly; further columns are let be.

    Raises TabrankError naming the file, the line, the column and the remedy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _trace(path, file)
    except OSError as error:
        raise TabrankError(
            f"{path}: {error.strerror or 'unreadable'}; name a CSV with the columns {TIME} and {RATE}"
        ) from None
    except UnicodeDecodeError:
        raise TabrankError(f"{path}: no text in UTF-8; name a CSV") from None


def _trace(path: Path, file: Iterator[str]) -> Trace:
    reader = csv.DictReader(file, strict=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    for name in (TIME, RATE):
        if name not in columns:
            raise TabrankError(_missing(path, name, columns))
    twice = [name for i, name in enumerate(columns) if name in columns[:i]]
    if twice:
        raise TabrankError(f"{path}:1: the column {twice[0]!r} is there twice")
    counted = [name for name in columns if name.endswith(REPLICAS) or name == NODES]
    rows: dict[str, list[float]] = {name: [] for name in (TIME, RATE, *counted)}
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                raise TabrankError(f"{where}: more fields than columns; write a thousand as 1000")
            for name, values in rows.items():
                values.append(_number(row[name], f"{where}: column {name}", name in counted))
            _check_row(rows, where)
    except csv.Error as error:
        raise TabrankError(f"{path}:{reader.line_num}: no CSV: {error}") from None
    if len(rows[TIME]) < 2:
        raise TabrankError(
            f"{path}: {len(rows[TIME])} rows; there must be two or more: the last lasts as long as the one before"
        )
    trace = Trace(tuple(rows[TIME]), tuple(rows[RATE]), {name: tuple(rows[name]) for name in counted})
    if trace.end_s - trace.t_s[0] > MAX_SECONDS:
        raise TabrankError(
            f"{path}: lasts {trace.end_s - trace.t_s[0]:,.0f} s; at most {MAX_SECONDS:,} are simulated: cut it shorter"
        )
    if trace.num_requests > MAX_REQUESTS:
        raise TabrankError(
            f"{path}: offers {trace.num_requests:,} requests; at most {MAX_REQUESTS:,} are simulated: cut it shorter"
        )
    return trace


def _check_row(rows: dict[str, list[float]], where: str) -> None:
    times = rows[TIME]
    if len(times) > 1 and times[-1] <= times[-2]:
        raise TabrankError(
            f"{where}: column {TIME}: {shown(times[-1])} must be above {shown(times[-2])}, the row before"
        )
    if rows[RATE][-1] < 0:
        raise TabrankError(f"{where}: column {RATE}: {rows[RATE][-1]:g} must be 0 or more")


def _number(text: str | None, where: str, may_lack: bool) -> float:
    if may_lack and not (text or "").strip():
        return math.nan
    if not (text or "").strip():
        raise TabrankError(f"{where} is missing")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TabrankError(f"{where}: {text!r} is no number")
    return value


def _missing(path: Path, name: str, columns: list[str]) -> str:
    if not columns:
        return f"{path}:1: empty; the first line names the columns, {TIME},{RATE}"
    other = [column for column in columns if column not in (TIME, RATE)]
    near = [unknown_key(f"{path}:1", column, [name]) for column in other]
    hints = [text for text in near if "did you mean" in text]
    return hints[0] if hints else f"{path}:1: the column {name} is missing; there are {', '.join(columns)}"
