"""The law of the simulated world: what a viewer would click and join, if they looked.

R rows, each a (viewer, Space) pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from training.world.population import (
    MINUTE_MS,
    TOPICS,
    Floats,
    Hosts,
    Ints,
    Spaces,
    Viewers,
    local_hour,
    topics_by_language,
)

Flags = NDArray[np.bool_]

SLATE = 55  # candidates in an exposure, where so many are live
NUM_POPULAR = 12  # of these, how many come from the top of the whole world whatever their language


@dataclass(frozen=True)
class Law:
    """The weights of the two logits: a click if examined, and a join once clicked."""

    click: float = -3.6
    taste: float = 0.85
    same_language: float = 1.9
    follows: float = 1.6
    quality: float = 0.4
    audience: float = 0.15  # social proof, times log1p(audience)
    peak: float = 1.2  # what a Space loses at its very start or end against its best moment, roughly
    age: float = 0.15  # what a Space loses by growing old, times log1p(age / 30 min)
    hour: float = 0.4  # each topic has its time of day
    eagerness: float = 0.4
    join: float = -0.7
    join_taste: float = 0.3
    join_quality: float = 0.4
    join_same_language: float = 0.8
    examination: float = 12.0  # the position (from 0) at which only half of the viewers still look
    drift: float = 0.04  # how far a join moves the taste for its topic towards `fondest`
    fondest: float = 2.5


@dataclass(frozen=True)
class Response:
    """What one viewer does with one answer; R rows in the shown order. Times hold where the flag does."""

    p_click: Floats
    p_join: Floats
    examination: Floats
    clicked: Flags
    joined: Flags
    click_ms: Ints
    join_ms: Ints
    leave_ms: Ints


class World:
    """A population and its law. The same seed, viewers and span give the same world."""

    def __init__(
        self, *, seed: int, viewers: int, start_ms: int, end_ms: int, law: Law | None = None
    ) -> None:
        streams = [default_rng(child) for child in SeedSequence(seed).spawn(4)]
        self.law = law or Law()
        self.start_ms = start_ms
        self.end_ms = end_ms
        popularity = topics_by_language(streams[0])
        self.topic_hour = streams[0].uniform(0.0, 24.0, size=len(TOPICS))
        self.hosts = Hosts.draw(streams[1], popularity)
        self.spaces = Spaces.draw(streams[2], self.hosts, start_ms, end_ms)
        self.viewers = Viewers.draw(streams[3], viewers, self.hosts, popularity)

    def go_on(self, rng: Generator, end_ms: int) -> None:
        """Let the world last until end_ms: with more Spaces, whose numbers follow those that there are."""
        self.spaces = self.spaces.going_on(rng, self.hosts, self.end_ms, end_ms)
        self.end_ms = end_ms

    def hour(self, viewer: int | Ints, ts_ms: int | Ints) -> Floats:
        """The hour of the day where the viewer is."""
        return local_hour(ts_ms, self.viewers.utc_offset_h[viewer])

    def follows(self, viewer: int | Ints, space: Ints) -> Flags:
        """[R]: whether the viewer follows the Space's host."""
        host = self.spaces.host[space][:, None]
        return np.asarray((host == self.viewers.follows[viewer]).any(axis=1), dtype=np.bool_)

    def retrieve(self, rng: Generator, viewer: int, ts_ms: int, audience: Ints, *, without: Ints) -> Ints:
        """Up to SLATE live Spaces for a visit, unordered: of followed hosts, widely popular, else of the
        viewer's language, else any. `audience` is [S]; the Spaces in `without` are left out.
        """
        live = self.spaces.live(ts_ms)
        if len(without):
            live = live[~np.isin(live, without)]
        if len(live) <= SLATE:
            return live
        key = rng.random(len(live))
        key += self.spaces.language[live] == self.viewers.language[viewer]
        key += 2.0 * self.follows(viewer, live)
        key[np.argpartition(-audience[live], NUM_POPULAR)[:NUM_POPULAR]] += 2.0
        return live[np.argpartition(-key, SLATE)[:SLATE]]

    def probabilities(
        self, viewer: int | Ints, space: Ints, ts_ms: int | Ints, audience: Ints
    ) -> tuple[Floats, Floats]:
        """The true P(click) and P(join) of each row if it is examined, whatever its position.

        `space` and `audience` (listeners in that Space) are [R]; `viewer` and `ts_ms` are [R] or one for all.
        """
        law, spaces, viewers = self.law, self.spaces, self.viewers
        topic = spaces.topic[space]
        taste = viewers.tastes[viewer, topic]
        same_language = spaces.language[space] == viewers.language[viewer]
        quality = spaces.quality[space]
        age_ms = ts_ms - spaces.started_ms[space]
        phase = age_ms / (spaces.ends_ms[space] - spaces.started_ms[space])
        angle = (self.hour(viewer, ts_ms) - self.topic_hour[topic]) * (2.0 * np.pi / 24.0)
        click = (
            law.click
            + law.taste * taste
            + law.same_language * same_language
            + law.follows * self.follows(viewer, space)
            + law.quality * quality
            + law.audience * np.log1p(audience)
            - law.peak * (2.0 * (phase - spaces.peak[space])) ** 2
            - law.age * np.log1p(age_ms / (30 * MINUTE_MS))
            + law.hour * np.cos(angle)
            + law.eagerness * viewers.eagerness[viewer]
        )
        join = (
            law.join
            + law.join_taste * taste
            + law.join_quality * quality
            + law.join_same_language * same_language
        )
        p_click = _sigmoid(click)
        return p_click, p_click * _sigmoid(join)

    def examination(self, num: int) -> Floats:
        """The probability that a viewer looks at each of the first `num` positions."""
        return np.asarray(1.0 / (1.0 + np.arange(num) / self.law.examination), dtype=np.float64)

    def respond(self, rng: Generator, viewer: int, shown: Ints, ts_ms: int, audience: Ints) -> Response:
        """Draw what a viewer does with Spaces shown in this order; `audience` is [R].

        Clicks come within a minute, a join within 90 s of its click; who joined leaves by the Space's end.
        """
        p_click, p_join = self.probabilities(viewer, shown, ts_ms, audience)
        examination = self.examination(len(shown))
        draw = rng.random((4, len(shown)))
        # One number decides both: below p_join it's a join, below p_click a click.
        clicked = (draw[0] < examination) & (draw[1] < p_click)
        joined = clicked & (draw[1] < p_join)
        left_ms = self.spaces.ends_ms[shown] - ts_ms
        click_ms = ts_ms + np.minimum(1_000 + 59_000 * draw[2] ** 2, left_ms / 3).astype(np.int64)
        join_ms = click_ms + np.minimum(1_000 + 89_000 * draw[3] ** 2, left_ms / 3).astype(np.int64)
        listen_ms = (10_000 + MINUTE_MS * rng.lognormal(np.log(20.0), 0.9, size=len(shown))).astype(np.int64)
        leave_ms = np.minimum(join_ms + listen_ms, self.spaces.ends_ms[shown])
        return Response(p_click, p_join, examination, clicked, joined, click_ms, join_ms, leave_ms)

    def enjoy(self, viewer: int, joined: Ints) -> None:
        """Move the viewer's tastes a little towards the topics of the Spaces that they joined."""
        for topic in self.spaces.topic[joined].tolist():
            taste = self.viewers.tastes[viewer, topic]
            self.viewers.tastes[viewer, topic] = taste + self.law.drift * max(0.0, self.law.fondest - taste)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)), dtype=np.float64)
