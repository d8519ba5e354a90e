"""Records of what `serve status` reports; its JSON has the names of their fields."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from serve.operate.host.service_state import Probe, Record
from serve.operate.host.state import RunState


class Cause(Record):
    """A fault and what to do about it; a fault that is only advice does not degrade the service."""

    name: str
    where: str
    text: str
    remedy: str
    runbook: str | None = None
    advice: bool = False

    def __str__(self) -> str:
        return f"{f'{self.where}: ' if self.where else ''}{self.text} {self.remedy}"


class Health(msgspec.Struct, frozen=True):
    """Health in a line, with a remedy.

    The state is "healthy", "degraded", "down" (it serves nobody) or "unknown".
    """

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
    """Counts and shares between two pages of metrics; None if no metric shows a value.

    Attributes:
        rungs: Shares of the rankings by rung, which is how complete an answer is.
        reasons: Shares of the rankings by reason of degradation.
        arms: Shares of the rankings by arm.
        freshness_ms: Age of the features of the stalest replica.
        requests: Number of HTTP requests, of which the next shares are.
        error_share: Share that failed (5xx).
        errors: The same by status; `unattributed` are those that HAProxy counts and no replica has
            counted so far.
        unrouted_share: Share that belongs to no application.
        refused_share: Share that got 429. It is the sum of the next two.
        overload_share: Share that got 429 from a full replica.
        limited_share: Share that got 429 for another reason.
        calls: Number of calls of rankings and events.
        client_error_share: Share of the calls that got another 4xx; `client_errors` by status.
        steady_rps: Highest rate that rankings kept up for five minutes in the last hour.
        candidates: Number of candidates of live rankings, without those of tests.
        unknown_share: Share of these candidates that are unknown, and therefore last.
        viewers: Number of viewers that live rankings looked up.
        unknown_viewer_share: Share of these viewers that are unknown.
        model_rankings: Number of live rankings by a model.
        no_context_share: Share of these that lack fields of requests that the model was trained on.
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

    `records_rps` has the records of `/v1/events` a second, by what became of them: "accepted",
    "duplicate" (of an earlier one) or "rejected". It is empty if no metric counts them.
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
        """The causes that degrade the service, in the order in which to mend them."""
        return [one for one in self.causes if not one.advice]


def unread(line: str) -> Report:
    """Return the report of a service that could not be read; `line` says why."""
    return Report(state="unknown", health=Health("unknown", line))
