"""`loadtest freshness`: measure, under load, the time from an event to a ranking that shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import gevent
import msgspec
import numpy as np

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import BATCH, make_bodies, pack, viewer_events
from loadtest.generator.connections import Connections
from loadtest.generator.dispatcher import Dispatcher, allow_open_files, arrivals
from loadtest.generator.ids import Ids
from loadtest.generator.offer import OfferedLoad, offering
from loadtest.generator.prober import CANDIDATE, VIEWER, Prober
from loadtest.measure.measure import RequestLog, measure, rounded
from loadtest.measure.service import EVENTS_PATH, MODEL_PATH, ask, post_records, probe, read_acknowledgement
from loadtest.measure.verdict import judge_freshness
from loadtest.report.freshness import event_numbers, freshness_numbers, spread, write_freshness
from loadtest.report.report import Report
from loadtest.workload.profiles import SEED, Block, Profile, Slo
from serve.contract.records import Candidate, ClientRecord, Event, Forget
from serve.operate.host.machine import describe_machine

# Records per post when the probes are removed. The service accepts at most 2,000.
CLEAN_UP_BATCH = 500


@dataclass(frozen=True)
class FreshnessPlan:
    """Rates of a run. That of the rankings is in `profile`."""

    profile: Profile
    events_per_s: float
    probes_per_s: float = 5.0

    @property
    def batch(self) -> int:
        """Return the number of events per post, which is small at a low rate."""
        return max(1, min(BATCH, int(self.events_per_s // BATCH)))


def run_freshness(
    plan: FreshnessPlan, url: str, ids: Ids, kinds: Mapping[str, int] | None, slo: Slo, out: Path
) -> Report:
    """Load and probe the service, remove the probes, and write the report to the new folder `out`.

    `kinds` tells how often each kind of event is posted, relative to the others. If it is None, all
    events are of the kind that the service's first outcome predicts.

    Raises:
        LoadtestError: if nothing answers at `url`, or the service does not accept events.
    """
    profile, bodies = plan.profile, make_bodies(ids, plan.profile)
    seconds, warmup_s = profile.duration_s, profile.warmup_s
    probe(url, bodies[0])
    label_event = _label_event(url)
    kinds = kinds or {label_event: 1}
    prober = Prober(url, label_event)
    posts = RequestLog()
    try:
        _try_events(url, prober, sorted({*kinds, label_event}))
        allow_open_files()
        # The probes come at random times. Regular ones might always meet the same part of a cycle
        # of the service.
        random = arrivals(plan.probes_per_s, [Block(seconds)], np.random.default_rng([SEED, 1]))
        stream = viewer_events(ids, kinds, prober.run_id, plan.batch)
        with offering(OfferedLoad.of(profile, url, bodies)) as offer:
            others = [
                gevent.spawn(_post_events, url, plan, stream, posts),
                gevent.spawn(prober.run, (warmup_s + at_s for at_s in random), warmup_s),
            ]
            try:
                gevent.joinall(others, raise_error=True)
            finally:
                gevent.killall(others)
            rankings = offer.result().requests.counted_from(warmup_s)
    finally:
        left_behind = _clean_up(url, prober)
    probes = {kind: log.requests() for kind, log in prober.records.items()}
    posted = measure(posts.requests().counted_from(warmup_s), seconds)
    measured = {
        "url": url,
        "seconds": seconds,
        "freshness_ms": freshness_numbers(probes),
        "answered_freshness_ms": spread(np.array(prober.answered_ms)),
        "rank": {"target_rps": profile.target_rps, **rounded(asdict(measure(rankings, seconds)))},
        "events": event_numbers(plan.events_per_s, plan.batch, posted),
        "left_behind": left_behind,
        "machine": describe_machine(),
    }
    verdict, reasons = judge_freshness(measured, slo.generator_late_ms_p99)
    report = {"verdict": verdict, "reasons": reasons, **measured}
    write_freshness(out, report, probes)
    return report


def _label_event(url: str) -> str:
    status, body = ask(url, MODEL_PATH)
    try:
        outcomes = msgspec.json.decode(body)["outcomes"]
        return str(next(iter(outcomes.values()))["event"])
    # An error of tabrank has no outcomes, and another service may answer anything.
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, StopIteration):
        raise LoadtestError(
            f"--url {url}: GET {MODEL_PATH} does not name the predicted event (status {status}); "
            "use the URL of a tabrank service"
        ) from None


def _try_events(url: str, prober: Prober, kinds: Sequence[str]) -> None:
    """Post the anchor candidate and one event of each kind, to check that the service accepts them.

    Raises:
        LoadtestError: if it rejects one.
    """
    asker, anchor = prober.asker, prober.anchor
    tried = [Event(f"{prober.run_id}-t{i}", asker, anchor, kind) for i, kind in enumerate(kinds)]
    for refused in post_records(url, pack([Candidate(anchor), *tried])):
        raise LoadtestError(
            f"--url {url}: the service rejects events of this run: {refused.pointer}: {refused.detail}; "
            "use --log with a log of the surface that it serves"
        )


def _post_events(url: str, plan: FreshnessPlan, bodies: Iterator[bytes], posts: RequestLog) -> None:
    read = partial(read_acknowledgement, num_records=plan.batch)
    posts_per_s = plan.events_per_s / plan.batch
    times_s = arrivals(posts_per_s, plan.profile.blocks, np.random.default_rng(SEED))
    with closing(Connections(url, EVENTS_PATH)) as connections:
        Dispatcher(connections.exchange, read, posts.keep).run(times_s, map(connections.prepare, bodies))


def _clean_up(url: str, prober: Prober) -> list[str]:
    """End the probe candidates and forget the probe viewers.

    Returns a sentence for each post that failed.
    """
    now_ms = int(time.time() * 1000)
    ends = [Candidate(name, ends_ms=now_ms) for name in (prober.anchor, *prober.posted[CANDIDATE])]
    viewers = [Forget(name) for name in (prober.asker, *prober.posted[VIEWER])]
    failures = []
    posted: dict[str, Sequence[ClientRecord]]
    posted = {"candidates were not ended": ends, "viewers were not forgotten": viewers}
    for what, records in posted.items():
        for first in range(0, len(records), CLEAN_UP_BATCH):
            part = records[first : first + CLEAN_UP_BATCH]
            try:
                outcome, num_done = read_acknowledgement(*ask(url, EVENTS_PATH, pack(part)), len(part))
                why = "" if outcome.ok else outcome.name
            except LoadtestError as error:
                why, num_done = str(error), 0
            if why:
                failures.append(f"{len(part) - num_done} of the probes' {what}: {why}")
    return failures
