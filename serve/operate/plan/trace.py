"""Read a load trace: offered requests per second over time, and a real run's counts if present."""

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
# Limits the computing time to some minutes.
MAX_REQUESTS = 5_000_000
# Limits the computing time likewise: Ray's policy runs ten times a second, loaded or not.
MAX_SECONDS = 86_400
MAX_PHASES = 12


@dataclass(frozen=True)
class Phase:
    """Part of the trace that is reported on one line, from `begin_s` to `end_s`."""

    name: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Trace:
    """Load trace: `offered_rps[i]` applies from `t_s[i]`.

    The last row lasts as long as the one before. `counted` has the counts of a real run's timeline
    by column (`Scorer_replicas`, `nodes`); nan where the run has none.
    """

    t_s: tuple[float, ...]
    offered_rps: tuple[float, ...]
    counted: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """Return the end of the last row."""
        return 2 * self.t_s[-1] - self.t_s[-2]

    @property
    def num_requests(self) -> int:
        """Return the total number of offered requests."""
        return round(float(np.dot(self.offered_rps, np.diff([*self.t_s, self.end_s]))))

    def rate_rps(self, at_s: float) -> float:
        """Return the offered rate at a time."""
        return self.offered_rps[max(int(np.searchsorted(self.t_s, at_s, side="right")) - 1, 0)]

    @property
    def num_reversals(self) -> int:
        """Return how often the load changes direction; less than a fifth of its peak is noise."""
        reversals, low, high, rising = 0, self.offered_rps[0], self.offered_rps[0], None
        least = max(self.offered_rps) / 5
        for rate in self.offered_rps:
            low, high = min(low, rate), max(high, rate)
            if rising is not False and rate < high - least:
                reversals, rising, low = reversals + (rising is not None), False, rate
            elif rising is not True and rate > low + least:
                reversals, rising, high = reversals + (rising is not None), True, rate
        return reversals

    def arrivals(self, rng: np.random.Generator) -> list[float]:
        """Return the arrival times in seconds, ascending: a Poisson process given each row's count.

        A row has the count that its rate gives; a fraction of a request is carried to the next row.
        """
        begins = np.asarray(self.t_s)
        lasts = np.diff([*self.t_s, self.end_s])
        counts = np.diff(np.round(np.cumsum(np.concatenate([[0.0], lasts * self.offered_rps])))).astype(int)
        row = np.repeat(np.arange(len(begins)), counts)
        return list(np.sort(begins[row] + rng.random(len(row)) * lasts[row]).tolist())

    def phases(self) -> list[Phase]:
        """Return each row as a phase if they are few, otherwise twelve equal parts."""
        bounds = [*self.t_s, self.end_s]
        if len(self.t_s) > MAX_PHASES:
            bounds = [float(bound) for bound in np.linspace(self.t_s[0], self.end_s, MAX_PHASES + 1)]
        return [
            Phase(f"{_rounded(begin, end - begin)}–{_rounded(end, end - begin)} s", begin, end)
            for begin, end in pairwise(bounds)
        ]


def shown(at_s: float) -> str:
    """Return a time as text, with all digits of a Unix time."""
    return f"{round(at_s, 3):.15g}"


def _rounded(at_s: float, stretch_s: float) -> str:
    return shown(round(at_s, 1) if stretch_s >= 0.1 else at_s)


def read_trace(path: Path) -> Trace:
    """Read a CSV with the columns `t_s` and `offered_rps` strictly; ignore other columns.

    Raise TabrankError naming the file, the line, the column and the remedy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _trace(path, file)
    except OSError as error:
        raise TabrankError(
            f"{path}: {error.strerror or 'unreadable'}; name a CSV with the columns {TIME} and {RATE}"
        ) from None
    except UnicodeDecodeError:
        raise TabrankError(f"{path}: not UTF-8 text; name a CSV") from None


def _trace(path: Path, file: Iterator[str]) -> Trace:
    reader = csv.DictReader(file, strict=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    for name in (TIME, RATE):
        if name not in columns:
            raise TabrankError(_missing(path, name, columns))
    twice = [name for i, name in enumerate(columns) if name in columns[:i]]
    if twice:
        raise TabrankError(f"{path}:1: the column {twice[0]!r} appears twice; remove one")
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
        raise TabrankError(f"{path}:{reader.line_num}: invalid CSV: {error}") from None
    if len(rows[TIME]) < 2:
        raise TabrankError(
            f"{path}: {len(rows[TIME])} rows; at least two are needed: the last lasts as long as the one before"
        )
    trace = Trace(tuple(rows[TIME]), tuple(rows[RATE]), {name: tuple(rows[name]) for name in counted})
    if trace.end_s - trace.t_s[0] > MAX_SECONDS:
        raise TabrankError(
            f"{path}: lasts {trace.end_s - trace.t_s[0]:,.0f} s; at most {MAX_SECONDS:,} s are simulated: shorten it"
        )
    if trace.num_requests > MAX_REQUESTS:
        raise TabrankError(
            f"{path}: offers {trace.num_requests:,} requests; at most {MAX_REQUESTS:,} are simulated: shorten it"
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


def _number(text: str | None, where: str, is_optional: bool) -> float:
    if is_optional and not (text or "").strip():
        return math.nan
    if not (text or "").strip():
        raise TabrankError(f"{where} is missing")
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TabrankError(f"{where}: {text!r} is not a number")
    return value


def _missing(path: Path, name: str, columns: list[str]) -> str:
    if not columns:
        return f"{path}:1: empty; the first line names the columns, {TIME},{RATE}"
    other = [column for column in columns if column not in (TIME, RATE)]
    near = [unknown_key(f"{path}:1", column, [name]) for column in other]
    hints = [text for text in near if "did you mean" in text]
    return hints[0] if hints else f"{path}:1: the column {name} is missing; there are {', '.join(columns)}"
