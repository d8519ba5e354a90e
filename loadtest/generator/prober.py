"""Probe freshness: post a record, then ask for rankings until one shows it.

*Freshness* is the time from the post of a record to the first ranking that knows it.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from time import perf_counter

import gevent
import gevent.pool
import msgspec
from geventhttpclient.response import HTTPParseError

from loadtest.generator.bodies import pack
from loadtest.generator.connections import Connections, error_kind
from loadtest.measure.measure import RequestLog
from loadtest.measure.service import EVENTS_PATH, Outcome, read_acknowledgement
from serve.contract.records import Candidate, ClientRecord, Event

CANDIDATE, VIEWER = "candidate", "viewer"
KINDS = (CANDIDATE, VIEWER)
# Time between two polls. A measured freshness is too long by at most this time and one ranking.
POLL_S = 0.02
# After SLOW_AFTER_S a probe polls less often, so that polling does not overload a late service.
SLOW_POLL_S = 0.1
SLOW_AFTER_S = 1.0
# A probe that takes longer than this counts as never shown. The limit of the p99 is 1 s.
WAIT_S = 5.0
SHOWN = Outcome("shown", ok=True)
NOT_SHOWN = Outcome(f"not shown within {WAIT_S:g} s", ok=False)


class _Answer(msgspec.Struct, gc=False):
    rung: str
    unknown_viewer: bool
    unknown_candidates: list[str]
    freshness_ms: float | None


_decode = msgspec.json.Decoder(_Answer).decode


class Prober:
    """Freshness prober. Each probe starts when it is due, however long earlier ones take.

    There are two kinds of probes, which take turns:

    - A *candidate* probe posts a new candidate. It is visible when an answer no longer lists the
      candidate as unknown.
    - A *viewer* probe posts the first event of a new viewer. It is visible when an answer no longer
      reports the viewer as unknown.

    Neither depends on the fields of a surface. An answer of the rung `fallback` does not count,
    because it reads no viewer.

    Polling starts after the service has acknowledged the record. The polled rankings are logged as
    exposures of the same viewer, but after the record, so only the record can make a probe visible.

    The latency of a probe runs from sending the record to the first answer that shows it. It is
    therefore too long by up to POLL_S and one ranking. In `records`, `scored` is the number of
    polled rankings. Ids of probes are unique across runs and surfaces.
    """

    def __init__(self, url: str, label_event: str) -> None:
        self.run_id = f"freshness-{secrets.token_hex(6)}"
        # `asker` is the viewer who asks for rankings of probe candidates. `anchor` is the candidate
        # that the events of probe viewers name.
        self.asker, self.anchor = f"{self.run_id}-asker", f"{self.run_id}-anchor"
        self.records = {kind: RequestLog() for kind in KINDS}
        # Values of `freshness_ms` in the answers.
        self.answered_ms = array("d")
        self.posted: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self._events = Connections(url, EVENTS_PATH)
        self._ranks = Connections(url)
        self._label_event = label_event

    def run(self, times_s: Iterable[float], counted_from_s: float) -> None:
        """Start a probe at each time, and wait for the end of all probes.

        `times_s` are ascending seconds from now. In `records`, times count from `counted_from_s`.
        """
        begins = perf_counter()
        probes = gevent.pool.Group()
        try:
            for number, at_s in enumerate(times_s):
                gevent.sleep(max(0.0, begins + at_s - perf_counter()))
                late_ms = (perf_counter() - begins - at_s) * 1000
                kind = KINDS[number % len(KINDS)]
                add = partial(self.records[kind].add, at_s - counted_from_s, late_ms)
                probes.add(gevent.spawn(self._probe, kind, number, add))
            probes.join(raise_error=True)
        finally:
            probes.kill()
            self._events.close()
            self._ranks.close()

    def _probe(self, kind: str, number: int, add: partial[None]) -> None:
        name = f"{self.run_id}-{kind[0]}{number}"
        if kind == CANDIDATE:
            viewer, shown = self.asker, name
            record: ClientRecord = Candidate(name)
        else:
            record = Event(f"{name}-e", name, self.anchor, self._label_event)
            viewer, shown = name, self.anchor
        self.posted[kind].append(name)
        sent = perf_counter()
        if rejected := self._post(pack([record])):
            add((perf_counter() - sent) * 1000, rejected, 0)
            return
        body = {"viewer": viewer, "candidates": [shown], "traffic": "test"}
        request = self._ranks.prepare(msgspec.json.encode(body))
        num_polls = 0
        while True:
            polled = perf_counter()
            num_polls += 1
            is_shown = self._shows(kind, request)
            waited_s = perf_counter() - sent
            if is_shown or waited_s > WAIT_S:
                add(waited_s * 1000, SHOWN if is_shown else NOT_SHOWN, num_polls)
                return
            pause_s = POLL_S if waited_s < SLOW_AFTER_S else SLOW_POLL_S
            gevent.sleep(max(0.0, polled + pause_s - perf_counter()))

    def _post(self, body: bytes) -> Outcome | None:
        """Post one record; return None if it was accepted, and otherwise the outcome."""
        try:
            reply = self._events.exchange(self._events.prepare(body))
            outcome, _ = read_acknowledgement(reply.code, reply.body, 1)
        except (OSError, HTTPParseError) as error:
            outcome = Outcome(error_kind(error), ok=False)
        return None if outcome.ok else Outcome(f"event: {outcome.name}", ok=False)

    def _shows(self, kind: str, request: bytes) -> bool:
        try:
            reply = self._ranks.exchange(request)
            if reply.code != HTTPStatus.OK:
                return False
            answer = _decode(reply.body)
        except (OSError, HTTPParseError, msgspec.MsgspecError):
            return False
        if answer.freshness_ms is not None:
            self.answered_ms.append(answer.freshness_ms)
        if answer.rung == "fallback":
            return False
        return not (answer.unknown_viewer if kind == VIEWER else answer.unknown_candidates)
