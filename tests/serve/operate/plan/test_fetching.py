"""The simulated batches equal those of the service's own batcher for the same requests."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
from dataclasses import replace

import numpy as np
import pytest

from serve.operate.plan.costs import load_costs
from serve.operate.plan.event_queue import EventQueue
from serve.operate.plan.fetching import FetchReplica
from serve.operate.plan.ledger import FULL, LATE, Ledger
from serve.operate.plan.service import Deployment, PlannedService
from serve.ranking.batcher import Batcher

# The last 5 ms of the deadline are reserved for the answer.
PATIENT_S, SLOTS, CAP = 0.095, 2, 10
# The durations of the batches in turn; the last one exceeds every deadline.
TOOK_S = (0.02, 0.05, 0.03, 0.2)


class _NoWait(selectors.SelectSelector):
    """Selector that lets a loop's time pass without waiting."""

    now_s = 0.0

    def select(self, timeout=None):
        self.now_s += max(timeout or 0.0, 0.0)
        return super().select(0)


def real(arrived_s):
    """Return (time, requests) of each batch of the real batcher, and whether each was answered."""
    selector = _NoWait()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s
    batches = []

    async def work(batch):
        batches.append((round(loop.time(), 3), batch))
        await asyncio.sleep(TOOK_S[(len(batches) - 1) % len(TOOK_S)])
        return batch

    async def submit(batcher, request, at_s):
        await asyncio.sleep(at_s - loop.time())
        try:
            await batcher.submit(request, 1, loop.time() + PATIENT_S)
        except TimeoutError:
            return False
        return True

    async def run():
        batcher = Batcher(work, slots=SLOTS, cap=CAP)
        return await asyncio.gather(*(submit(batcher, i, at) for i, at in enumerate(arrived_s)))

    with contextlib.closing(loop):
        return batches, loop.run_until_complete(run())


class _Handle:
    """Handle that scores each batch after its duration."""

    def __init__(self, events):
        self.events, self.num_calls, self.sizes = events, 0, []

    def call(self, size, then):
        self.sizes.append((round(self.events.now_s, 3), size))
        call = [then]
        self.events.at(self.events.now_s + TOOK_S[self.num_calls % len(TOOK_S)], self._done, call)
        self.num_calls += 1
        return call

    def _done(self, call):
        if call:
            call[0]()

    def cancel(self, call):
        call.clear()


def simulated(arrived_s):
    """Return the same of the simulated replica, whose loop takes no time here."""
    costs = load_costs()
    fetch = replace(costs.fetch, us_per_request=0, ms_per_batch=0)
    costs = replace(costs, candidates=1, spread=0.0, fetch=fetch)
    deployment = Deployment("FeatureFetch", None, 1, 10_000, -1, {}, 1.0)
    service = PlannedService(
        "spaces", deployment, deployment, (), {}, PATIENT_S + 0.005, SLOTS, CAP, 1.0, None
    )
    ledger = Ledger(arrived_s, [True] * len(arrived_s), service)
    events = EventQueue(0.0)
    handle = _Handle(events)
    replica = FetchReplica("one", events, costs, ledger, handle, random.Random(0))
    for request, at_s in enumerate(arrived_s):
        events.run_until(at_s)
        replica.take(request)
    events.run_until(arrived_s[-1] + 1.0)
    assert (replica.num_ongoing, replica.num_connected) == (0, 0)
    return handle.sizes, [state == FULL for state in ledger.state], ledger


@pytest.mark.parametrize("rate_rps", [20, 100, 250, 600])
def test_simulated_batches_are_those_of_the_real_batcher(rate_rps):
    rng = np.random.default_rng(rate_rps)
    arrived_s = np.cumsum(rng.exponential(1 / rate_rps, 150)).tolist()
    batches, answered = real(arrived_s)
    sizes, full, ledger = simulated(arrived_s)
    assert sizes == [(at_s, len(batch)) for at_s, batch in batches]
    assert full == answered
    assert set(ledger.state) <= {FULL, LATE}
