"""Story of the demo: a new Space rises for a viewer who engaged with its topic."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from loadtest.errors import LoadtestError
from loadtest.generator.bodies import pack
from loadtest.generator.ids import read_log_ids
from loadtest.measure.service import PATH, ask, detail_of, post_records
from serve.contract.records import Candidate, ClientRecord, Event

NUM_JOINS = 5
# Rooms that ended longer ago are not joined.
RECENT_MS = 30 * 60_000
# The topic is one of this many that the fewest live rooms have.
COMMON_TOPICS = 8
NEW_SPACE = "new-space"
# Candidates beside the new Space: with it there are 55, as in the headline profile.
NUM_RIVALS = 54
# Number of places of a ranking that the report shows.
NUM_TOP = 8
# Age of the new Space at the start. In the first seconds of a room its age alone would change its
# place.
OPENED_MS = 60_000
# The demo holds only if the new Space rises within this time.
RISES_S = 1.0
# The demo waits at most this long for a change of the rankings, and asks again after POLL_S.
WAIT_S = 5.0
POLL_S = 0.02
# The first rankings of a new service may take longer than its own deadline.
DEADLINE = {"X-Deadline-Ms": "2000"}


class TopicStory:
    """Two viewers and a new Space. One of the viewers joins five Spaces on its topic.

    The other one is the control viewer, who joins nothing. `run` is the run folder of the service,
    which messages of errors name.
    """

    def __init__(self, log: Path, run: Path) -> None:
        self._run = run
        rows = pq.read_table(log / "candidates.parquet").to_pylist()
        rooms = {row["id"]: row for row in rows}
        ends_ms = {row["id"]: row["ends_ms"] for row in rows if row["ends_ms"] is not None}
        live = [room for name, room in rooms.items() if name not in ends_ms]
        # The service may have dropped rooms that ended earlier; it would ignore joins of them.
        shown = pq.read_table(log / "exposures.parquet", columns=["ts_ms"])
        since_ms = pc.max(shown["ts_ms"]).as_py() - RECENT_MS
        on_topic: dict[str, list[str]] = defaultdict(list)
        for name, room in rooms.items():
            if ends_ms.get(name, since_ms) >= since_ms:
                on_topic[room["topic"]].append(name)
        # The Space has the language of most rooms. Among few rooms of its language a new one would
        # be first at once.
        language = Counter(room["language"] for room in live).most_common(1)[0][0]
        viewers = pq.read_table(log / "viewers.parquet").to_pylist()
        speakers = {row["id"] for row in viewers if row["language"] == language}
        regulars = [viewer for viewer in read_log_ids(log, 0).viewers if viewer in speakers]
        num_live = Counter(room["topic"] for room in live)
        rarest = sorted(num_live, key=num_live.__getitem__)
        topics = [topic for topic in rarest if len(on_topic[topic]) >= NUM_JOINS]
        events = pq.read_table(log / "events.parquet", columns=["viewer", "candidate", "kind"])
        joins = events.filter(pc.equal(events["kind"], "join")).to_pylist()
        joined = {(join["viewer"], rooms[join["candidate"]]["topic"]) for join in joins}
        new_to = ((v, t) for v in regulars for t in topics[:COMMON_TOPICS] if (v, t) not in joined)
        self.viewer, self.topic = next(new_to, (regulars[0], topics[0]))
        self.control = next(viewer for viewer in regulars if viewer != self.viewer)
        self._examples = on_topic[self.topic][:NUM_JOINS]
        new = {**live[0], "topic": self.topic, "language": language, "host": "a-new-host"}
        not_fields = ("id", "ts_ms", "ends_ms")
        self._fields = {k: value for k, value in new.items() if value is not None and k not in not_fields}
        rivals = sorted(live, key=lambda room: bool(room["language"] == language))[-NUM_RIVALS:]
        self._topics = {name: room["topic"] for name, room in rooms.items()}
        self._slate = [NEW_SPACE, *(room["id"] for room in rivals)]

    def open(self, url: str) -> None:
        """Open the new Space and wait until rankings include it."""
        fields = {**self._fields, "started_ms": int(time.time() * 1000) - OPENED_MS}
        self.post(url, [Candidate(NEW_SPACE, fields)])
        until = time.monotonic() + WAIT_S
        while NEW_SPACE in self.rank(url, self.control)["unknown_candidates"]:
            if time.monotonic() > until:
                raise LoadtestError(f"rankings did not know the new Space in {WAIT_S:g} s; see {self._run}")
            time.sleep(POLL_S)

    def play(self, url: str) -> dict[str, Any]:
        """Let the viewer join five Spaces on the topic, and return how the rankings change.

        - `viewer` and `control`: the place of the new Space before and after, for each viewer.
        - `seconds`: the time from the acknowledgement of the joins to the first ranking in which
          the Space rose; None if it did not rise within WAIT_S.
        - `rose`: whether it rose within RISES_S, and by more places than for the control viewer.
        - `rankings`: the viewer's first places before and after.
        """
        first = self.rank(url, self.viewer, explain=True)
        before = {self.viewer: place_in(first), self.control: self.place(url, self.control)}
        self.post(url, self.engagements())
        seconds, after = self._await_rise(url, before[self.viewer])
        last = self.rank(url, self.viewer, explain=True)
        control_after = self.place(url, self.control)
        risen, control_risen = before[self.viewer] - after, before[self.control] - control_after
        return {
            "topic": self.topic,
            "viewer": {"before": before[self.viewer], "after": after},
            "control": {"before": before[self.control], "after": control_after},
            # The age of a room alone may change its place by one, for each viewer.
            "rose": seconds is not None and seconds <= RISES_S and risen > max(control_risen, 0),
            "seconds": seconds,
            "rankings": {"before": self._top(first, first), "after": self._top(last, first)},
        }

    def _top(self, answer: dict[str, Any], first: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the first places of a ranking and the new Space, with their places in `first`."""
        was = {room["candidate"]: room["position"] for room in first["ranking"]}
        return [
            {
                **{key: room.get(key) for key in ("candidate", "position", "score", "reasons")},
                "topic": self._topics.get(room["candidate"], self.topic),
                "was": was[room["candidate"]],
            }
            for room in answer["ranking"]
            if room["position"] <= NUM_TOP or room["candidate"] == NEW_SPACE
        ]

    def engagements(self) -> list[Event]:
        """Return a click and a join for each Space, as viewers open a room and then join it."""
        return [
            Event(f"story-{kind}-{candidate}", self.viewer, candidate, kind)
            for candidate in self._examples
            for kind in ("click", "join")
        ]

    def post(self, url: str, records: Iterable[ClientRecord]) -> None:
        """Post records.

        Raises:
            LoadtestError: unless the service accepts all.
        """
        for refused in post_records(url, pack(records), f"; see {self._run}"):
            raise LoadtestError(f"the service rejects the demo's events: {refused.pointer}: {refused.detail}")

    def rank(self, url: str, viewer: str, *, explain: bool = False) -> dict[str, Any]:
        """Return the service's answer to a ranking of the demo's candidates.

        Raises:
            LoadtestError: if there is none, or it is not of the rung `full`.
        """
        request = {"viewer": viewer, "candidates": self._slate, "traffic": "test", "explain": explain}
        status, body = ask(url, PATH, json.dumps(request).encode(), DEADLINE)
        if status != 200:
            raise LoadtestError(f"the service did not rank: {status} {detail_of(body)}; see {self._run}")
        answer: dict[str, Any] = json.loads(body)
        if answer["rung"] != "full":
            why = ", ".join(answer["degraded"])
            raise LoadtestError(f"the service's answer is only {answer['rung']!r}: {why}; see {self._run}")
        return answer

    def place(self, url: str, viewer: str) -> int:
        """Return the position of the new Space for a viewer."""
        return place_in(self.rank(url, viewer))

    def _await_rise(self, url: str, before: int) -> tuple[float | None, int]:
        """Return the seconds until the Space ranks before place `before`, and its last place.

        The seconds are None if it does not within WAIT_S.
        """
        begun = time.monotonic()
        while (place := self.place(url, self.viewer)) >= before and time.monotonic() - begun <= WAIT_S:
            time.sleep(POLL_S)
        return (round(time.monotonic() - begun, 3) if place < before else None), place


def place_in(answer: dict[str, Any]) -> int:
    """Return the position of the new Space in an answer."""
    return next(int(room["position"]) for room in answer["ranking"] if room["candidate"] == NEW_SPACE)
