"""Simulate the service under a load trace: requests, replicas, nodes and Ray's scaling policy.

Simulated are Poisson arrivals, HAProxy's choice of the replica with the fewest connections,
FeatureFetch's event loops, batches and deadlines, the Scorer's queues, Ray's counts with their
intervals and delays, and starts and stops. Not simulated are cores shared between replicas, garbage
collection, the network, and loop lag.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import numpy as np

from serve.config.pools import HEAD, NodePool
from serve.operate.plan.costs import Costs
from serve.operate.plan.counts import Reporter, Series
from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.fetching import FetchReplica
from serve.operate.plan.fleet import Fleet
from serve.operate.plan.ledger import Ledger
from serve.operate.plan.nodes import UPDATE_S, Cluster
from serve.operate.plan.outcome import Outcome, SecondCounts
from serve.operate.plan.policy import LOOP_S, Policy, simulated_time
from serve.operate.plan.scoring import Handle, Router, ScorerReplica
from serve.operate.plan.service import FETCH, SCORER, Deployment, PlannedService
from serve.operate.plan.trace import REPLICAS, Trace

SAMPLE_S = 1.0
# Room for everything, where the file has no `nodes`.
UNLIMITED = {HEAD: NodePool(1_000_000, 1, 1, 1_000)}
RUNNING, WAITING = "running", "waiting"
_Count = Callable[[], Mapping[str, float]]
_Send = Callable[[Series, float], None]


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
    """
    rng = np.random.default_rng(seed)
    arrived_s = trace.arrivals(rng)
    by_model = (rng.random(len(arrived_s)) < service.model_share).tolist()
    ledger = Ledger(arrived_s, by_model, service)
    events = EventQueue(trace.t_s[0])
    with simulated_time(events):
        samples = _Simulation(service, costs, trace, ledger, events, random.Random(seed), progress).run()
    return Outcome(trace, service, samples, ledger)


class _Simulation:
    def __init__(
        self,
        service: PlannedService,
        costs: Costs,
        trace: Trace,
        ledger: Ledger,
        events: EventQueue,
        rng: random.Random,
        progress: Callable[[float], None],
    ) -> None:
        self.service, self.costs, self.trace, self.ledger = service, costs, trace, ledger
        self.events, self.rng, self.progress = events, rng, progress
        self.policy = Policy(service)
        self.cluster = Cluster(service.pools or UNLIMITED, costs.nodes, events.now_s)
        self.router = Router(events, costs, service.scorer.max_ongoing, rng)
        # Every replica until it has ended.
        self.fetchers: dict[str, FetchReplica] = {}
        self.scorers: dict[str, ScorerReplica] = {}
        # The replicas that take requests.
        self.open: list[FetchReplica] = []
        # The time of replicas that have ended.
        self.busy_s = 0.0
        self.samples: list[SecondCounts] = []
        fleets = (
            self._fleet(service.fetch, costs.fetch.start_s, FETCH),
            self._fleet(service.scorer, costs.scorer.start_s, SCORER),
            *(self._fleet(other, 0.0, "") for other in service.others),
        )
        self.fleets = {fleet.deployment.name: fleet for fleet in fleets}

    def _fleet(self, deployment: Deployment, start_s: float, kind: str) -> Fleet:
        begin = {FETCH: self._open_fetcher, SCORER: self._open_scorer}.get(kind, _nothing)
        stop = {FETCH: self._close_fetcher, SCORER: self._close_scorer}.get(kind, _nothing)
        end = {FETCH: self._end_fetcher, SCORER: self._end_scorer}.get(kind, _nothing)
        return Fleet(deployment, start_s, self.events, self.cluster, begin, stop, end)

    def run(self) -> list[SecondCounts]:
        """Run the whole trace and return the samples."""
        self._begin()
        events, open_ = self.events, self.open
        for request, arrives_s in enumerate(self.ledger.arrived_s):
            events.run_until(arrives_s)
            if len(open_) == 1:
                open_[0].take(request)
            else:
                # HAProxy's leastconn.
                fewest = min(replica.num_connected for replica in open_)
                self.rng.choice([each for each in open_ if each.num_connected == fewest]).take(request)
        events.run_until(self.trace.end_s)
        self._settle()
        return self.samples

    def _begin(self) -> None:
        for fleet in self.fleets.values():
            fleet.scale(self._initial_replicas(fleet.deployment), at_once=True)
        while waiting := self._unplaced():
            before = len(self.cluster.nodes)
            self.cluster.update(self.events.now_s, waiting, at_once=True)
            for fleet in self.fleets.values():
                fleet.place(at_once=True)
            if len(self.cluster.nodes) == before:
                break
        begin_s = self.events.now_s
        self.events.at(begin_s, self._control)
        self.events.at(begin_s + UPDATE_S, self._update_nodes)
        self.events.at(begin_s + SAMPLE_S, self._sample)

    def _initial_replicas(self, deployment: Deployment) -> int:
        counted = self.trace.counted.get(f"{deployment.name}{REPLICAS}", ())
        first = next((count for count in counted if count >= 1), None)
        if first is not None:
            return int(first)
        initial = (deployment.autoscaling or {}).get("initial_replicas")
        return deployment.min_replicas if initial is None else int(initial)

    def _settle(self) -> None:
        """Answer the requests that are in flight at the end of the trace."""
        self.events.run_until(self.trace.end_s + self.service.deadline_s + 1.0)
        seconds = self.trace.end_s - self.trace.t_s[0]
        del self.samples[math.ceil(round(seconds / SAMPLE_S, 6)) :]

    def _control(self) -> None:
        """Run one iteration of the controller's loop."""
        wanted = self.policy.decide(
            {name: fleet.running for name, fleet in self.fleets.items()},
            {name: fleet.wanted for name, fleet in self.fleets.items()},
            self.fetchers,
        )
        for name, fleet in self.fleets.items():
            count = wanted.get(name, fleet.wanted)
            if count != fleet.wanted:
                fleet.scale(count)
            elif fleet.num_unplaced:
                fleet.place()
        self.events.at(self.events.now_s + LOOP_S, self._control)

    def _update_nodes(self) -> None:
        self.cluster.update(self.events.now_s, self._unplaced())
        self.events.at(self.events.now_s + UPDATE_S, self._update_nodes)

    def _unplaced(self) -> list[Mapping[str, float]]:
        return [fleet.deployment.needs for fleet in self.fleets.values() for _ in range(fleet.num_unplaced)]

    def _sample(self) -> None:
        at_s = self.events.now_s
        busy_s = sum(replica.busy_s for replica in self.fetchers.values())
        busy_s += sum(replica.busy_s for replica in self.scorers.values())
        self.samples.append(
            SecondCounts(
                at_s - SAMPLE_S,
                {name: fleet.wanted for name, fleet in self.fleets.items()},
                {name: len(fleet.running) for name, fleet in self.fleets.items()},
                {name: self.policy.ongoing(name) for name in self.fleets if self.policy.scales(name)},
                len(self._unplaced()),
                len(self.cluster.joined(at_s)),
                self.busy_s + busy_s,
            )
        )
        begin_s, end_s = self.trace.t_s[0], self.trace.end_s
        self.progress(min((at_s - begin_s) / (end_s - begin_s), 1.0))
        self.events.at(at_s + SAMPLE_S, self._sample)

    def _open_fetcher(self, name: str) -> None:
        replica = FetchReplica(name, self.events, self.costs, self.ledger, Handle(self.router), self.rng)
        self.fetchers[name] = replica
        self.open.append(replica)
        if self.policy.scales(FETCH):
            self._report(
                FETCH,
                replica,
                lambda: {RUNNING: replica.num_ongoing},
                lambda series, at_s: self.policy.replica_reports(FETCH, name, series.get(RUNNING, []), at_s),
            )
        if self.policy.scales(SCORER):
            self._report(SCORER, replica, lambda: _calls(replica.handle), self._send_calls(name))

    def _report(self, name: str, replica: FetchReplica, count: _Count, send: _Send) -> None:
        reporter = Reporter(
            self.events,
            replica,
            count,
            send,
            self.policy.record_s(name),
            self.policy.push_s(name),
            self.policy.look_back_s(name),
        )
        phase_s = 0.0 if not self.samples else self.rng.random() * 0.5
        reporter.start(self.events.now_s + phase_s, push_first=name == FETCH)

    def _send_calls(self, handle: str) -> _Send:
        def send(series: Series, at_s: float) -> None:
            queued = series.pop(WAITING, [(at_s, 0.0)])
            self.policy.handle_reports(SCORER, handle, queued, series, at_s)

        return send

    def _close_fetcher(self, name: str) -> None:
        self.open.remove(self.fetchers[name])

    def _end_fetcher(self, name: str) -> None:
        replica = self.fetchers.pop(name, None)
        if replica is not None:
            replica.is_gone = True
            self.busy_s += replica.busy_s

    def _open_scorer(self, name: str) -> None:
        self.scorers[name] = ScorerReplica(name, self.events, self.costs, self.rng)
        self.router.running.append(self.scorers[name])
        self.router.retry()

    def _close_scorer(self, name: str) -> None:
        self.router.running.remove(self.scorers[name])
        for fetcher in self.fetchers.values():
            if not fetcher.handle.running.get(name):
                fetcher.handle.running.pop(name, None)

    def _end_scorer(self, name: str) -> None:
        replica = self.scorers.pop(name, None)
        if replica is not None:
            self.busy_s += replica.busy_s


def _calls(handle: Handle) -> dict[str, float]:
    return {WAITING: handle.num_queued, **handle.running}


def _nothing(name: str) -> None:
    """Do nothing, for a deployment that is not simulated."""
