"""Records of what `serve status` reports, and what its JSON holds, by the names of their fields."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from serve.operate.host.service_state import Probe, Record
from serve.operate.host.state import RunState


class Cause(Record):
    """Fault with what to do about it; one that is advice does not degrade the service."""

    name: str
    where: str
    text: str
    remedy: str
    runbook: str | None = None
    advice: bool = False

    def __str__(self) -> str:
        return f"{f'{self.where}: ' if self.where else ''}{self.text} {self.remedy}"


class Health(msgspec.Struct, frozen=True):
    """Health in a line: "healthy", "degraded", "down" (serves nobody), "unknown"; and a remedy."""

    state: str
    line: str
    remedy: str | None = None
    runbook: str | None = None


class Memory(msgspec.Struct, frozen=True):
    """Memory of the fullest node; None without metrics."""

    used_mib: int | None = None
    limit_mib: int | None = None
    node: str | None = None


class Counted(Record):
    """Counts and shares between two pages of metrics; None where no metric shows a value.

    `rungs`, `reasons` (of degradation) and `arms` are shares of the rankings. `freshness_ms` is the
    age of the features of the stalest replica. Of the HTTP `requests`, `error_share` failed (5xx;
    `errors` by status, `unattributed` where HAProxy counts more than the replicas so far),
    `unrouted_share` belong to no application, and `refused_share` got 429: `overload_share` from a
    full replica, `limited_share` for another reason. Of the `calls` of rankings and events,
    `client_error_share` got another 4xx (`client_errors` by status). `steady_rps` is the rate that
    rankings kept up for five minutes in the last hour. Of live rankings, without a test's,
    `unknown_share` of the `candidates` are unknown and so last, `unknown_viewer_share` of the
    `viewers` are unknown, and `no_context_share` of the `model_rankings` lack context that the
    model was trained on.
    """

    freshness_ms: float | None = None
    rankings: int = 0
    rungs: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, float] = field(default_factory=dict)
    arms: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    error_share: float | None = None
    refused_share: float | None = None
    unrouted_share: float | None = None
    overload_share: float | None = None
    limited_share: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    client_error_share: float | None = None
    client_errors: dict[str, float] = field(default_factory=dict)
    steady_rps: float = 0.0
    candidates: int = 0
    unknown_share: float | None = None
    viewers: int = 0
    unknown_viewer_share: float | None = None
    model_rankings: int = 0
    no_context_share: float | None = None


class Traffic(Counted):
    """Rates, latency and counts of all applications within `window_s`, and the counts of each.

    `records_rps` are the records of `/v1/events` a second that were "accepted", were a "duplicate"
    of an earlier one, or were "rejected". It is empty without a metric that counts them.
    """

    window_s: float = 0.0
    rate_rps: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    records_rps: dict[str, float] = field(default_factory=dict)
    applications: dict[str, Counted] = field(default_factory=dict)


class Report(RunState):
    """State of a service with its answers, traffic and health."""

    at: str | None = None
    run: str | None = None
    # The applications whose kill switch is on; None if one of them did not answer.
    kill_switch: list[str] | None = None
    # The answers of `/readyz` by application, with the experiment of `/v1/model`.
    surfaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    traffic: Traffic | None = None
    memory: Memory = Memory()
    breaks: list[Probe] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    health: Health = Health("unknown", "unknown")

    @property
    def faults(self) -> list[Cause]:
        """The causes that degrade the service, what to mend first before the others."""
        return [one for one in self.causes if not one.advice]


def unread(line: str) -> Report:
    """Return the report of a service that could not be read; `line` says why."""
    return Report(state="unknown", health=Health("unknown", line))
