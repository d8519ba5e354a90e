"""Timeline of a run by second: offered and answered load, latency, replicas and nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.measure.cluster import PERIOD_S, ClusterSample
from loadtest.measure.measure import Requests, percentile

# Older samples are ignored: the replicas and nodes that they name may be gone.
STALE_S = 5 * PERIOD_S


@dataclass(frozen=True)
class Moment:
    """One second of a run, relative to the start of the measurement; negative in the warm-up.

    `offered_rps`, the percentiles, `full_share` and `failed` describe the requests due in this
    second. `answered_rps` counts the good answers that arrived in it. Replicas and nodes are from
    the last sample before its end; None: there was no recent sample.
    """

    t_s: int
    offered_rps: int
    answered_rps: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    full_share: float | None
    failed: int
    late_ms_p99: float | None
    replicas: dict[str, int | None]
    nodes: int | None

    @property
    def full_rps(self) -> float:
        """Return the number of due requests that got a full answer.

        `full_share` counts only answers.
        """
        return (self.offered_rps - self.failed) * (self.full_share or 0.0)


def timeline(
    requests: Requests, seconds: float, samples: Sequence[ClusterSample], warmup_s: float = 0.0
) -> list[Moment]:
    """Return every second of the warm-up and the measurement, also seconds without requests."""
    due = np.floor(requests.at_s).astype(int)
    came = np.floor(requests.ended_s[requests.ok]).astype(int)
    full = np.array([outcome.full for outcome in requests.outcomes], dtype=bool)[requests.codes]
    names = sorted({name for sample in samples for name in sample.replicas})
    moments = []
    for second in range(-int(np.ceil(warmup_s)), int(np.ceil(seconds))):
        here = requests.where(due == second)
        num_ok = int(here.ok.sum())
        p50_ms, p90_ms, p99_ms = (percentile(here.latency_ms, share, here.ok) for share in (0.5, 0.9, 0.99))
        seen = next((sample for sample in reversed(samples) if sample.at_s < second + 1), None)
        if seen is not None and seen.at_s < second + 1 - STALE_S:
            seen = None
        moments.append(
            Moment(
                t_s=second,
                offered_rps=len(here.ok),
                answered_rps=int((came == second).sum()),
                p50_ms=p50_ms,
                p90_ms=p90_ms,
                p99_ms=p99_ms,
                full_share=int(full[due == second].sum()) / num_ok if num_ok else None,
                failed=len(here.ok) - num_ok,
                late_ms_p99=percentile(here.late_ms, 0.99),
                replicas={name: seen.replicas.get(name) if seen else None for name in names},
                nodes=seen.nodes if seen else None,
            )
        )
    return moments
