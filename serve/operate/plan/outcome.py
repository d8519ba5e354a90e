"""Result of a simulation: counts by second, totals, and warnings for the operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from serve.config.pools import HEAD
from serve.operate.plan.ledger import LATE, REFUSED, Ledger
from serve.operate.plan.service import PlannedService
from serve.operate.plan.trace import Phase, Trace

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class SecondCounts:
    """Counts at the end of one second of the trace, by deployment."""

    t_s: float
    wanted: Mapping[str, int]
    running: Mapping[str, int]
    # As Ray counts them, for the deployments that scale.
    ongoing: Mapping[str, float]
    # Replicas without room on a node.
    unplaced: int
    nodes: int
    # The processor time of all replicas since the start.
    busy_s: float


@dataclass(frozen=True)
class Answers:
    """Answers in a part of the trace; simulated latencies are an indication, not a promise."""

    requests: int
    # Answered in popular order at the deadline.
    late_share: float
    refused_share: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Outcome:
    """Result of a plan, with one of `samples` per second."""

    trace: Trace
    service: PlannedService
    samples: list[SecondCounts]
    ledger: Ledger

    @property
    def deployments(self) -> list[str]:
        """Return the names of the deployments, simulated ones first."""
        return [deployment.name for deployment in self.service.deployments]

    def column(self, name: str) -> F64:
        """Return one deployment's running replicas by second; `nodes` counts machines."""
        return np.array(
            [sample.nodes if name == "nodes" else sample.running[name] for sample in self.samples], float
        )

    def rows_of(self, phase: Phase) -> list[SecondCounts]:
        """Return the seconds of a phase."""
        return [sample for sample in self.samples if phase.begin_s <= sample.t_s < phase.end_s]

    def answers(self, begin_s: float, end_s: float) -> Answers:
        """Return the answers to the requests that arrived in this time."""
        first, last = np.searchsorted(self._arrived, [begin_s, end_s])
        state = self._state[first:last]
        answered = state != REFUSED
        took_ms = (self._answered[first:last] - self._arrived[first:last])[answered] * 1e3
        p50, p99 = np.percentile(took_ms, [50, 99]) if len(took_ms) else (np.nan, np.nan)
        count = max(len(state), 1)
        return Answers(
            len(state),
            float((state == LATE).sum() / count),
            float((state == REFUSED).sum() / count),
            float(p50),
            float(p99),
        )

    @cached_property
    def _arrived(self) -> F64:
        return np.asarray(self.ledger.arrived_s)

    @cached_property
    def _answered(self) -> F64:
        return np.asarray(self.ledger.answered_s)

    @cached_property
    def _state(self) -> NDArray[np.uint8]:
        return np.frombuffer(bytes(self.ledger.state), np.uint8)

    def warnings(self) -> list[str]:
        """Return why the service does not follow its load, each with the key to change."""
        return [
            *self._hidden(),
            *self._overloaded(),
            *self._at_limit(),
            *self._flapping(),
            *self._short_of_nodes(),
            *self._short_of_cores(),
        ]

    def _hidden(self) -> list[str]:
        service, target = self.service, self.service.scorer.target
        if target is None or service.scorer.max_replicas <= service.scorer.min_replicas:
            return []
        most = service.slots * service.fetch.max_replicas
        if most > target * service.scorer.min_replicas:
            return []
        return [
            f"the Scorer can never scale: at most slots x FeatureFetch replicas = {service.slots} x "
            f"{service.fetch.max_replicas} = {most} calls are ongoing, and target_ongoing_requests is {target:g}; "
            f"use more slots or replicas, or a lower target"
        ]

    def _overloaded(self) -> list[str]:
        deadline_ms = 1e3 * self.service.deadline_s
        slow, refused = [], 0.0
        for phase in self.trace.phases():
            answers = self.answers(phase.begin_s, phase.end_s)
            refused = max(refused, answers.refused_share)
            if answers.p99_ms > deadline_ms:
                slow.append((answers.p99_ms, phase.name))
        found = []
        if slow:
            p99_ms, when = max(slow)
            found.append(
                f"p99 is {p99_ms:.0f} ms at {when}, above deadline_ms ({deadline_ms:g}), which starts only when a "
                f"replica accepts a request"
            )
        if refused:
            found.append(f"up to {refused:.1%} of a phase's requests are refused (max_queued_requests)")
        return [f"overloaded: {'; '.join(found)}"] if found else []

    def _at_limit(self) -> list[str]:
        found = []
        for deployment in (self.service.fetch, self.service.scorer):
            if deployment.target is None:
                continue
            most, target = deployment.max_replicas, deployment.target
            seconds = sum(
                sample.wanted[deployment.name] >= most
                and sample.ongoing.get(deployment.name, 0.0) > target * most
                for sample in self.samples
            )
            if seconds:
                found.append(
                    f"{deployment.name}: max_replicas ({most}) is reached, with more ongoing requests than the "
                    f"target, for {seconds} of {len(self.samples)} s"
                )
        return found

    def _flapping(self) -> list[str]:
        found = []
        for deployment in (self.service.fetch, self.service.scorer):
            steps = np.diff([sample.wanted[deployment.name] for sample in self.samples])
            reversals = int((np.diff(np.sign(steps[steps != 0])) != 0).sum())
            if reversals > self.trace.num_reversals + 1:
                found.append(
                    f"{deployment.name}: flaps: its replica count reverses {reversals} times, the load "
                    f"{self.trace.num_reversals} times; use two thresholds or a longer downscale_delay_s"
                )
        return found

    def _short_of_nodes(self) -> list[str]:
        waiting = sum(sample.unplaced > 0 for sample in self.samples)
        if not waiting or not self.service.pools:
            return []
        pools = ", ".join(f"{name} {pool.max_nodes}" for name, pool in self.service.pools.items())
        if self.samples[-1].unplaced:
            return [f"nodes: replicas wait for room until the end; max_nodes: {pools}"]
        return [f"nodes: a replica waits for a new node for {waiting} of {len(self.samples)} s"]

    def _short_of_cores(self) -> list[str]:
        pools = self.service.pools
        if not pools:
            return []
        head_cores = pools[HEAD].num_cpus
        busy = np.diff([sample.busy_s for sample in self.samples])
        one_node = np.array([sample.nodes == 1 for sample in self.samples[1:]], bool)
        short = int((busy[one_node] > head_cores).sum())
        if not short:
            return []
        return [
            f"for {short} s the replicas on the first node use more than its {head_cores} cores: the simulation gives "
            f"each replica a core of its own, so the real service scales less there"
        ]


def chance_warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Return where plans of one load, with different arrivals, differ by more than a replica."""
    first, found = outcomes[0], []
    for deployment in first.service.deployments[:2]:
        name = deployment.name
        means = np.array(
            [
                [
                    float(np.mean([row.running[name] for row in each.rows_of(phase)] or [0]))
                    for each in outcomes
                ]
                for phase in first.trace.phases()
            ]
        )
        off = means.max(axis=1) - means.min(axis=1)
        if off.max() > 1:
            phase = first.trace.phases()[int(off.argmax())].name
            found.append(
                f"{name}: with other arrivals of the same load the plan differs by {off.max():.1f} replicas on "
                f"average at {phase}: it depends on chance there, so do not rely on it"
            )
    return found
