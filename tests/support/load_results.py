"""Synthetic results of loads, request by request."""

from __future__ import annotations

import numpy as np

from loadtest.generator.connections import Failure
from loadtest.generator.offer import OfferResult
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import Outcome
from loadtest.measure.timeline import Moment

FULL = Outcome("full", True, True)
FALLBACK = Outcome("fallback", True, False)
REFUSED = Outcome("HTTP 429", False)
BROKEN = Outcome("HTTP 500", False)
CLOSED = Outcome("connection closed", False)


class Offering:
    """Requests at a constant rate. The outcome that was set last for a request counts."""

    def __init__(self, seconds, rate_rps=100, outcome=FULL, latency_ms=10.0):
        self.rate_rps = rate_rps
        self.rows = dict.fromkeys(
            np.arange(0, seconds, 1 / rate_rps).round(4).tolist(), (outcome, latency_ms, 0.5)
        )
        self.failed = []

    def between(self, begins_s, ends_s, outcome=FULL, latency_ms=10.0, late_ms=0.5, every=1):
        """Set the outcome of every n-th request of a span."""
        chosen = [at for at in self.rows if begins_s <= at < ends_s][::every]
        self.rows |= dict.fromkeys(chosen, (outcome, latency_ms, late_ms))
        return self

    def failed_first(self, *at_s, kind="connection closed"):
        """Record first tries that failed at these times, with successful second tries."""
        self.failed += [Failure(at, kind) for at in at_s]
        return self

    @property
    def requests(self):
        log = RequestLog()
        for at, (outcome, latency_ms, late_ms) in self.rows.items():
            log.add(at, late_ms, latency_ms, outcome, 55 if outcome.full else 0)
        return log.requests()

    @property
    def offered(self):
        return OfferResult(self.requests, self.failed)


def moment(second, replicas=None, nodes=None):
    """Return a second of a timeline in which one request was answered in full."""
    return Moment(second, 1, 1, 5.0, 5.0, 5.0, 1.0, 0, 0.0, replicas or {}, nodes)
