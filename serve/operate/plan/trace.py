"""Read a load trace: offered requests per second over time, and a real run's counts if present."""

from __future__ import annotations

import contextlib
import csv
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError, did_you_mean

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

    def covers(self, at_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of these times belong to the phase."""
        return (at_s >= self.begin_s) & (at_s < self.end_s)


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

    def arrivals(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the arrival times in seconds, ascending: a Poisson process given each row's count.

        A row has the count that its rate gives; a fraction of a request is carried to the next row.
        """
        begins = np.asarray(self.t_s)
        lasts = np.diff([*self.t_s, self.end_s])
        counts = np.diff(np.round(np.cumsum(np.concatenate([[0.0], lasts * self.offered_rps])))).astype(int)
        row = np.repeat(np.arange(len(begins)), counts)
        return np.sort(begins[row] + rng.random(len(row)) * lasts[row])

    def phases(self) -> list[Phase]:
        """Return each row as a phase if they are few, otherwise twelve equal parts."""
        bounds = [*self.t_s, self.end_s]
        if len(self.t_s) > MAX_PHASES:
            bounds = [float(bound) for bound in np.linspace(self.t_s[0], self.end_s, MAX_PHASES + 1)]
        return [
            Phase(f"{_rounded(begin, end - begin)}–{_rounded(end, end - begin)} s", begin, end)
            for begin, end in pairwise(bounds)
        ]


def count_column(name: str) -> str:
    """Return the column with the running replicas of a deployment, or with the `nodes`."""
    return NODES if name == NODES else f"{name}{REPLICAS}"


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
            columns = _columns(path, csv.DictReader(file, strict=True))
    except OSError as error:
        raise TabrankError(
            f"{path}: {error.strerror or 'unreadable'}; name a CSV with the columns {TIME} and {RATE}"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TabrankError(f"{path}: not a CSV in UTF-8: {error}") from None
    times, rates = columns.pop(TIME), columns.pop(RATE)
    if len(times) < 2:
        raise TabrankError(
            f"{path}: {len(times)} rows; at least two are needed: the last lasts as long as the one before"
        )
    trace = Trace(times, rates, columns)
    if trace.end_s - trace.t_s[0] > MAX_SECONDS:
        raise TabrankError(
            f"{path}: lasts {trace.end_s - trace.t_s[0]:,.0f} s; at most {MAX_SECONDS:,} s are simulated: shorten it"
        )
    if trace.num_requests > MAX_REQUESTS:
        raise TabrankError(
            f"{path}: offers {trace.num_requests:,} requests; at most {MAX_REQUESTS:,} are simulated: shorten it"
        )
    return trace


def _columns(path: Path, reader: csv.DictReader[str]) -> dict[str, tuple[float, ...]]:
    """Return the columns that a trace has, by name."""
    names = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    for name in (TIME, RATE):
        if name not in names:
            raise TabrankError(_missing(path, name, names))
    for name in names:
        if names.count(name) > 1:
            raise TabrankError(f"{path}:1: the column {name!r} appears twice; remove one")
    known = [name for name in names if name in (TIME, RATE, NODES) or name.endswith(REPLICAS)]
    rows: list[dict[str, float]] = []
    for fields in reader:
        where = f"{path}:{reader.line_num}"
        if None in fields:
            raise TabrankError(f"{where}: more fields than columns; write a thousand as 1000")
        row = {key: _number(fields[key], f"{where}: column {key}", key not in (TIME, RATE)) for key in known}
        if rows and row[TIME] <= rows[-1][TIME]:
            raise TabrankError(
                f"{where}: column {TIME}: {shown(row[TIME])} must be above {shown(rows[-1][TIME])}, the row before"
            )
        if row[RATE] < 0:
            raise TabrankError(f"{where}: column {RATE}: {row[RATE]:g} must be 0 or more")
        rows.append(row)
    return {name: tuple(row[name] for row in rows) for name in known}


def _number(text: str | None, where: str, is_optional: bool) -> float:
    if not (text or "").strip():
        if is_optional:
            return math.nan
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
