"""Statistics of a run by second, and their CSV file."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields

import numpy as np

from loadtest.measure.measure import Requests, percentile


@dataclass(frozen=True)
class Second:
    """One second of a run, relative to the start of the measurement; negative in the warm-up.

    `requests` were due in this second; percentiles, `errors` and lateness describe them. `answered`
    counts the good answers that arrived in it.
    """

    second: int
    requests: int
    answered: int
    errors: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    late_ms_p99: float | None


def by_second(requests: Requests) -> list[Second]:
    """Return the seconds in which requests were due, in order."""
    due = np.floor(requests.at_s).astype(int)
    ended = np.floor(requests.ended_s[requests.ok]).astype(int)
    rows = []
    for second in np.unique(due).tolist():
        rows_of = requests.where(due == second)
        p50_ms, p90_ms, p99_ms = (
            percentile(rows_of.latency_ms, rows_of.ok, share) for share in (0.5, 0.9, 0.99)
        )
        late_ms = percentile(rows_of.late_ms, np.ones(len(rows_of.ok), dtype=bool), 0.99)
        num_errors = int((~rows_of.ok).sum())
        answered = int((ended == second).sum())
        rows.append(Second(second, len(rows_of.ok), answered, num_errors, p50_ms, p90_ms, p99_ms, late_ms))
    return rows


def to_csv(seconds: list[Second]) -> str:
    """Return the seconds as CSV; an empty field is a percentile that was not reached."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(Second))
    for row in seconds:
        writer.writerow(f"{value:.3f}" if isinstance(value, float) else value for value in astuple(row))
    return out.getvalue()
