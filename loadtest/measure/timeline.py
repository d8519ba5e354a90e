"""Timeline of a measurement by second: offered and answered load, replicas and nodes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.measure.cluster import PERIOD_S, ClusterSample
from loadtest.measure.measure import Requests, percentile

# Older samples are ignored: the replicas and nodes that they name may be gone.
STALE_S = 5 * PERIOD_S


@dataclass(frozen=True)
class Moment:
    """One second of the measurement.

    `offered_rps`, the percentiles, `full_share` and `failed` describe the requests due in this
    second. `answered_rps` counts the good answers that arrived in it. Replicas and nodes are from
    the last sample before its end; None: there was no recent sample.
    """

    t_s: int
    offered_rps: int
    answered_rps: int
    p50_ms: float | None
    p99_ms: float | None
    full_share: float | None
    failed: int
    replicas: dict[str, int | None]
    nodes: int | None

    @property
    def full_rps(self) -> float:
        """Return the number of due requests that got a full answer.

        `full_share` counts only answers.
        """
        return (self.offered_rps - self.failed) * (self.full_share or 0.0)


def timeline(requests: Requests, seconds: float, samples: Sequence[ClusterSample]) -> list[Moment]:
    """Return every second of the measurement in order, also seconds without requests."""
    due = np.floor(requests.at_s).astype(int)
    came = np.floor(requests.ended_s[requests.ok]).astype(int)
    full = np.array([outcome.full for outcome in requests.outcomes], dtype=bool)[requests.codes]
    names = sorted({name for sample in samples for name in sample.replicas})
    moments = []
    for second in range(int(np.ceil(seconds))):
        here = requests.where(due == second)
        num_ok = int(here.ok.sum())
        seen = next((sample for sample in reversed(samples) if sample.at_s < second + 1), None)
        if seen is not None and seen.at_s < second + 1 - STALE_S:
            seen = None
        moments.append(
            Moment(
                t_s=second,
                offered_rps=len(here.ok),
                answered_rps=int((came == second).sum()),
                p50_ms=percentile(here.latency_ms, here.ok, 0.5),
                p99_ms=percentile(here.latency_ms, here.ok, 0.99),
                full_share=int(full[due == second].sum()) / num_ok if num_ok else None,
                failed=len(here.ok) - num_ok,
                replicas={name: seen.replicas.get(name) if seen else None for name in names},
                nodes=seen.nodes if seen else None,
            )
        )
    return moments


def timeline_csv(moments: Sequence[Moment]) -> str:
    """Return the timeline as CSV with one column of replicas per deployment.

    An empty field is a percentile that was not reached, or a count without a sample.
    """
    names = list(moments[0].replicas) if moments else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = ("t_s", "offered_rps", "answered_rps", "p50_ms", "p99_ms", "full_share", "failed")
    writer.writerow([*numbers, *(f"{name}_replicas" for name in names), "nodes"])
    for moment in moments:
        row = [getattr(moment, name) for name in numbers]
        row += [*moment.replicas.values(), moment.nodes]
        writer.writerow(f"{value:.3f}" if isinstance(value, float) else value for value in row)
    return out.getvalue()
