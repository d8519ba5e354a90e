"""Chaos faults that flood the service: requests of the largest accepted size, beside the load."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor

import psutil

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import pack
from loadtest.measure.service import EVENTS_PATH, PATH, ask
from loadtest.report.report import Report
from loadtest.scenarios.chaos.fault import Allowed, Fault, Injected
from loadtest.targets.running import REPLICA, Target
from serve.contract.records import Candidate, Forget, Viewer

# With four digits, an id or a string of the maximum length. A ranking's body holds just a thousand
# of them.
LONGEST = "\N{ROCKET}" * 252
NUM_CANDIDATES = 1_000
# The service keeps this many members. A body of events holds just this many records.
NUM_MEMBERS, NUM_RECORDS = 32, 30
# With this many small records more, all batches have 100,000 records: the log is then written at
# once, whatever their size.
NUM_SMALL = 170
FLOOD_S, GROWTH, MAX_BYTES = 20.0, 1.2, 2 << 30


class Flood(Fault):
    """Flood of `num` requests, eight at once, for at most 20 s, with a watch on memory."""

    path: str
    deployment: str
    num: int
    rest_s = 0.0
    allowed = Allowed(failed_share=0.0, whole_s=5.0)
    # Not 0: recovery counts from the end of the flood.
    hold_s, watch_s = 0.1, 20.0

    def __init__(self) -> None:
        # The first value is the size before the flood.
        self._sizes: list[int] = []
        self._pids: set[int] = set()
        self._done: list[int] = []

    def look(self, target: Target) -> None:
        """Record the memory, and kill a process that uses too much, as the kernel would."""
        for process in target.find(REPLICA + self.deployment):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._sizes.append(process.memory_info().rss)
                self._pids.add(process.pid)
                if self._sizes[-1] > MAX_BYTES:
                    process.kill()

    def inject(self, target: Target) -> None:
        """Send the requests; rejected ones are not repeated."""
        self._url, until = target.url, time.monotonic() + FLOOD_S
        self._sizes = [target.one(REPLICA + self.deployment).memory_info().rss]

        def send(number: int) -> None:
            if time.monotonic() > until:
                return
            with contextlib.suppress(LoadtestError):
                if ask(target.url, self.path, self.body(number))[0] == http.client.OK:
                    self._done.append(number)
            time.sleep(self.rest_s)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, range(self.num)))

    def body(self, number: int) -> bytes:
        """Return the body of a request."""
        raise NotImplementedError

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return the number of answered requests and the memory before, at most and after."""
        first, most, last = (size >> 20 for size in (self._sizes[0], max(self._sizes), self._sizes[-1]))
        done, restarts = len(self._done), len(self._pids) - 1
        memory = {"memory_before_mib": first, "memory_most_mib": most, "memory_mib": last}
        note = f"{done} answered in the flood, {restarts} restarts, {first:,} → {most:,} → {last:,} MiB"
        return {"flood": done, "restarts": restarts, **memory, "notes": [note]}, []


class ExposureFlood(Flood):
    """Flood of rankings whose exposures far exceed the limit of a call between replicas."""

    name, what = "exposure-flood", "24 rankings of 1,000 ids of 256 characters in 3 s"
    path, deployment, num, rest_s = PATH, "FeatureFetch", 24, 1.0

    def body(self, number: int) -> bytes:
        """Return a ranking of unknown ids."""
        ids = [f"{i:04d}{LONGEST}" for i in range(NUM_CANDIDATES)]
        return json.dumps({"viewer": None, "candidates": ids, "traffic": "test"}, ensure_ascii=False).encode()

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return the numbers of a flood, and memory that was not released, as a reason."""
        found, reasons = super().measured(load)
        before, after = found["memory_before_mib"], found["memory_mib"]
        if after > GROWTH * before:
            reasons.append(f"{self.deployment} grew from {before:,} to {after:,} MiB (limit {GROWTH:g} x)")
        return found, reasons


class LongStrings(Flood):
    """Flood of the largest viewer records; each batch contains a separate candidate."""

    name, what = "long-strings", "600 MB of the longest records, Ingest killed above 2 GiB"
    path, deployment, num = EVENTS_PATH, "Ingest", 600

    def body(self, number: int) -> bytes:
        """Return a batch of records."""
        fields = {"follows": [f"{i:04d}{LONGEST}" for i in range(NUM_MEMBERS)]}
        name = f"long-{number}"
        viewers = [Viewer(f"{name}-{i}", fields) for i in range(NUM_RECORDS)]
        return pack([*viewers, *[Forget("long")] * NUM_SMALL, Candidate(name)])

    def measured(self, load: Injected) -> tuple[Report, list[str]]:
        """Return the numbers of a flood with its lost batches; restarts and these as reasons."""
        found, reasons = super().measured(load)
        ids = [f"long-{number}" for number in self._done]
        ranking = json.dumps({"viewer": None, "candidates": ids, "traffic": "test"}).encode()
        lost = len(json.loads(ask(self._url, PATH, ranking)[1])["unknown_candidates"])
        if found["restarts"] > 1:
            reasons.append(f"{self.deployment} restarted {found['restarts']} times (limit 1)")
        if lost:
            reasons.append(f"{lost} of {len(ids)} acknowledged batches are lost")
        return {**found, "lost": lost}, reasons


FLOODS: tuple[Fault, ...] = (ExposureFlood(), LongStrings())
