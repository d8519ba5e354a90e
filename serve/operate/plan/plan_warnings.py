"""Warn about a plan: why the service does not follow its load, and what the plan leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from serve.config.pools import HEAD
from serve.operate.plan.outcome import BUSY, ONGOING, UNPLACED, WANTED, Outcome
from serve.operate.plan.trace import NODES, TIME

# The share of full answers that a load test requires: with fewer, the load is past the knee.
MIN_FULL_SHARE = 0.999


def warnings_of(outcome: Outcome, others: Sequence[Outcome]) -> list[str]:
    """Return the warnings of a plan, each with the key to change.

    `others` are plans of the same load with other arrivals.
    """
    checks = (_hidden, _past_knee, _at_limit, _flapping, _short_of_nodes, _short_of_cores)
    return [*(warning for check in checks for warning in check(outcome)), *_chance([outcome, *others])]


def _hidden(outcome: Outcome) -> Iterator[str]:
    service, target = outcome.service, outcome.service.scorer.target_ongoing_requests
    most = service.slots * service.fetch.max_replicas
    if target and service.scorer in service.scaled and most <= target * service.scorer.min_replicas:
        yield (
            f"the Scorer can never scale: at most slots x FeatureFetch replicas = {service.slots} x "
            f"{service.fetch.max_replicas} = {most} calls are ongoing, and target_ongoing_requests is {target:g}; "
            f"use more slots or replicas, or a lower target"
        )


def _past_knee(outcome: Outcome) -> Iterator[str]:
    deadline_ms = 1e3 * outcome.service.deadline_s
    answers = [(outcome.answers(phase.begin_s, phase.end_s), phase.name) for phase in outcome.trace.phases()]
    found = []
    late_share, when = max((each["late_share"], name) for each, name in answers)
    if late_share > 1 - MIN_FULL_SHARE:
        found.append(f"{late_share:.1%} of the requests are late at {when}")
    slow = [(each["p99_ms"], name) for each, name in answers if (each["p99_ms"] or 0) > deadline_ms]
    if slow:
        p99_ms, when = max(slow)
        found.append(
            f"p99 is {p99_ms:.0f} ms at {when}, above deadline_ms ({deadline_ms:g}), which starts only when a "
            f"replica accepts a request"
        )
    refused_share = max(each["refused_share"] for each, _ in answers)
    if refused_share:
        found.append(f"up to {refused_share:.1%} of a phase's requests are refused (max_queued_requests)")
    if found:
        yield (
            f"past the knee: {'; '.join(found)}. There the service sheds load, which is not simulated: expect "
            f"other counts and latencies"
        )


def _at_limit(outcome: Outcome) -> Iterator[str]:
    for deployment, target in outcome.service.targets:
        most, name = deployment.max_replicas, deployment.name
        at_limit = outcome.counts[f"{name}{WANTED}"] >= most
        seconds = int((at_limit & (outcome.counts[f"{name}{ONGOING}"] > target * most)).sum())
        if seconds:
            yield (
                f"{name}: max_replicas ({most}) is reached, with more ongoing requests than the target, for "
                f"{seconds} of {len(at_limit)} s"
            )


def _flapping(outcome: Outcome) -> Iterator[str]:
    expected = outcome.trace.num_reversals
    for deployment in outcome.service.scaled:
        steps = np.diff(outcome.counts[f"{deployment.name}{WANTED}"])
        reversals = int((np.diff(np.sign(steps[steps != 0])) != 0).sum())
        if reversals > expected + 1:
            yield (
                f"{deployment.name}: flaps: its replica count reverses {reversals} times, the load {expected} "
                f"times; use two thresholds or a longer downscale_delay_s"
            )


def _short_of_nodes(outcome: Outcome) -> Iterator[str]:
    waiting = outcome.counts[UNPLACED] > 0
    if waiting[-1]:
        pools = ", ".join(f"{name} {pool.max_nodes}" for name, pool in outcome.service.pools.items())
        yield f"nodes: replicas wait for room until the end; max_nodes: {pools}"
    elif waiting.any():
        yield f"nodes: a replica waits for a new node for {waiting.sum()} of {len(waiting)} s"


def _short_of_cores(outcome: Outcome) -> Iterator[str]:
    if outcome.service.pools:
        head_cores = outcome.service.pools[HEAD].num_cpus
        on_one_node = outcome.counts[NODES][1:] == 1
        short = int((np.diff(outcome.counts[BUSY])[on_one_node] > head_cores).sum())
        if short:
            yield (
                f"for {short} s the replicas on the first node use more than its {head_cores} cores: the simulation "
                f"gives each replica a core of its own, so the real service scales less there"
            )


def _chance(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Warn where plans of one load, with different arrivals, differ by more than a replica."""
    for deployment in outcomes[0].service.scaled:
        spreads = [(0.0, "")]
        for phase in outcomes[0].trace.phases():
            during = phase.covers(outcomes[0].counts[TIME])
            # A phase may be shorter than a second.
            if during.any():
                means = [float(each.running(deployment.name)[during].mean()) for each in outcomes]
                spreads.append((max(means) - min(means), phase.name))
        spread, when = max(spreads)
        if spread > 1:
            yield (
                f"{deployment.name}: with other arrivals of the same load the plan differs by {spread:.1f} replicas "
                f"on average at {when}: it depends on chance there, so do not rely on it"
            )
