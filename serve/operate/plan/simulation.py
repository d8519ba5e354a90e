"""Simulate the service under a load trace: requests, replicas, nodes and Ray's scaling policy.

Simulated are Poisson arrivals, HAProxy's choice of the replica with the fewest connections,
FeatureFetch's event loops, batches and deadlines, the Scorer's queues, Ray's counts with their
intervals and delays, and starts and stops. Not simulated are load shedding, cores shared between
replicas, garbage collection, the network, and loop lag.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from serve.config.pools import HEAD, NodePool
from serve.contract.errors import TabrankError
from serve.operate.plan.costs import Costs
from serve.operate.plan.fleet import Fleet, Replica, SimulationContext
from serve.operate.plan.nodes import UPDATE_S, Cluster
from serve.operate.plan.outcome import BUSY, ONGOING, UNPLACED, WANTED, Ledger, Outcome
from serve.operate.plan.policy import LOOP_S, Policy, simulated_time
from serve.operate.plan.request_path import FetchReplica, Router, ScorerReplica
from serve.operate.plan.service import Deployment, PlannedService
from serve.operate.plan.trace import NODES, REPLICAS, TIME, Trace
from serve.operate.plan.virtual_time import VirtualTimeLoop

SAMPLE_S = 1.0
# Room for everything, where the file has no `nodes`.
UNLIMITED = {HEAD: NodePool(1_000_000, 1, 1, 1_000)}


def simulate(
    service: PlannedService,
    costs: Costs,
    trace: Trace,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Return the plan of a service; the same seed gives the same plan.

    `progress` receives the finished share, 0 to 1. A trace with replica counts, such as a real
    run's timeline, starts with the counts of its first row.

    Raise TabrankError where no node has room for the first FeatureFetch.
    """
    rng = np.random.default_rng(seed)
    ledger = Ledger(trace.arrivals(rng))
    by_model = (rng.random(len(ledger.arrived_s)) < service.model_share).tolist()
    loop = VirtualTimeLoop(trace.t_s[0])
    with simulated_time(loop):
        policy, cluster = Policy(service), Cluster(service.pools or UNLIMITED, costs.nodes, loop)
        context = SimulationContext(
            service, costs, ledger, by_model, policy, random.Random(seed), cluster, loop
        )
        simulation = _Simulation(context, trace, progress)
        simulation.start()
        # Requests in flight at the end of the trace still have the time to be answered.
        loop.run_until_complete(asyncio.sleep(trace.end_s - trace.t_s[0] + service.deadline_s + 1.0))
    samples = simulation.samples
    counts = {name: np.array([sample[name] for sample in samples], float) for name in samples[0]}
    return Outcome(trace, service, counts, ledger)


class _Simulation:
    def __init__(self, context: SimulationContext, trace: Trace, progress: Callable[[float], None]) -> None:
        service, costs = context.service, context.costs
        self.context, self.trace, self.progress = context, trace, progress
        self.loop, self.cluster = context.loop, context.cluster
        router = Router(context)
        fetch, scorer = partial(FetchReplica, context, router), partial(ScorerReplica, context, router)
        self.fetch = Fleet(context, service.fetch, costs.fetch.start_s, fetch)
        scorers = Fleet(context, service.scorer, costs.scorer.start_s, scorer)
        router.running = scorers.running
        others = [Fleet(context, other, 0.0, Replica) for other in service.others]
        fleets: list[Fleet[Any]] = [self.fetch, scorers, *others]
        self.fleets = {fleet.deployment.name: fleet for fleet in fleets}
        self.samples: list[dict[str, float]] = []
        # As Python's numbers, which compare faster.
        self.arrived_s: list[float] = context.ledger.arrived_s.tolist()

    def start(self) -> None:
        """Start the service with its first replicas, and everything that happens to it."""
        for fleet in self.fleets.values():
            fleet.scale(self._initial_replicas(fleet.deployment), at_once=True)
        self._find_room()
        if self.fetch.num_unplaced == self.fetch.wanted:
            needs = ", ".join(f"{amount:g} {unit}" for unit, amount in self.fetch.deployment.needs.items())
            raise TabrankError(
                f"nodes: no node has room for a replica of {self.fetch.deployment.name} ({needs}); raise num_cpus, "
                f"num_gpus or max_nodes of a pool, or request less in ray_actor_options"
            )
        self._await_arrival(0)
        self.loop.call_soon(self._control)
        self.loop.call_later(UPDATE_S, self._update_nodes)
        self.loop.call_at(self.trace.t_s[0] + SAMPLE_S, self._sample)

    def _initial_replicas(self, deployment: Deployment) -> int:
        counted = self.trace.counted.get(f"{deployment.name}{REPLICAS}", ())
        first = next((count for count in counted if count >= 1), None)
        if first is not None:
            return int(first)
        initial = (deployment.autoscaling or {}).get("initial_replicas")
        return deployment.min_replicas if initial is None else int(initial)

    def _find_room(self) -> None:
        """Add the nodes that the first replicas need."""
        num_nodes = 0
        while self._unplaced() and len(self.cluster.nodes) > num_nodes:
            num_nodes = len(self.cluster.nodes)
            self.cluster.update(self._unplaced(), at_once=True)
            for fleet in self.fleets.values():
                fleet.place(at_once=True)

    def _arrive(self, request: int) -> None:
        """Pass a request to HAProxy's choice of a replica: the one with the fewest connections."""
        replicas = self.fetch.running
        if len(replicas) > 1:
            fewest = min(replica.num_connected for replica in replicas)
            replicas = [replica for replica in replicas if replica.num_connected == fewest]
        replica = replicas[0] if len(replicas) == 1 else self.context.rng.choice(replicas)
        replica.answer(request)
        self._await_arrival(request + 1)

    def _await_arrival(self, request: int) -> None:
        if request < len(self.arrived_s):
            self.loop.call_at(self.arrived_s[request], self._arrive, request)

    def _control(self) -> None:
        """Run the controller's loop."""
        wanted = self.context.policy.decide(
            {name: [each.name for each in fleet.running] for name, fleet in self.fleets.items()},
            {name: fleet.wanted for name, fleet in self.fleets.items()},
            [replica.name for replica in self.fetch.replicas],
        )
        for name, fleet in self.fleets.items():
            if wanted.get(name, fleet.wanted) != fleet.wanted:
                fleet.scale(wanted[name])
            elif fleet.num_unplaced:
                fleet.place()
        self.loop.call_later(LOOP_S, self._control)

    def _update_nodes(self) -> None:
        """Run the autoscaler's loop."""
        self.cluster.update(self._unplaced())
        self.loop.call_later(UPDATE_S, self._update_nodes)

    def _unplaced(self) -> list[Mapping[str, float]]:
        return [fleet.deployment.needs for fleet in self.fleets.values() for _ in range(fleet.num_unplaced)]

    def _sample(self) -> None:
        """Count the replicas at the end of each second of the trace."""
        begin_s, end_s = self.trace.t_s[0], self.trace.end_s
        num_samples = math.ceil(round((end_s - begin_s) / SAMPLE_S, 6))
        self.samples.append(
            {
                TIME: begin_s + len(self.samples) * SAMPLE_S,
                **{f"{name}{REPLICAS}": len(fleet.running) for name, fleet in self.fleets.items()},
                **{f"{name}{WANTED}": fleet.wanted for name, fleet in self.fleets.items()},
                **{f"{name}{ONGOING}": num for name, num in self.context.policy.ongoing().items()},
                NODES: len(self.cluster.joined),
                UNPLACED: len(self._unplaced()),
                BUSY: self.context.ledger.busy_s,
            }
        )
        self.progress(len(self.samples) / num_samples)
        if len(self.samples) < num_samples:
            self.loop.call_at(begin_s + (len(self.samples) + 1) * SAMPLE_S, self._sample)
