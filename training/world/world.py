"""World simulator: the data-generating process of what viewers do, and responses drawn from it.

R rows, each a (viewer, Space) pair; S Spaces.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from scipy.special import expit, ndtr

from serve.features.slots import F64, I64, Bools
from training.world.population import (
    MAX_LIFE_MS,
    MINUTE_MS,
    NUM_HOSTS,
    TOPICS,
    Hosts,
    Spaces,
    Viewers,
    local_hour,
    topics_by_language,
)

# How examination falls with position: as 1 / (1 + position / 12), in steps, or not at all; or in a
# cascade, where it also depends on what was shown above.
ExaminationCurve = Literal["decay", "steps", "none", "cascade"]
# What a log may have that the methods do not assume: an order that knew tastes and qualities, which
# no feature tells, or joins that come after the label's window.
Unkind = Literal["hidden", "late"]

# Candidates in an exposure, if that many are live.
SLATE = 55
# Candidates in it that come from the most popular of all languages.
NUM_POPULAR = 12
# Position, from 0, that half of the viewers examine where examination decays.
HALF_EXAMINED = 12.0
# First positions, from 0, of the steps of examination, and the probability at each step.
STEPS = (0, 6, 14)
STEP_EXAMINATION = (0.95, 0.35, 0.12)
# In a cascade, the probability to look at the next candidate, and to stop looking after a join.
GOES_ON, STOPS = 0.96, 0.9
# Standard deviation of the error of the order that knows log P(join).
HIDDEN_ERROR = 0.7
# Longest time from a click to its join where joins come late; half of them come in a quarter of it.
LATE_MS = 120 * MINUTE_MS
# How memory fades, as activation in ACT-R (Anderson and Schooler 1991, "Reflections of the
# environment in memory"): a showing of t minutes ago adds t ** -FADING. One showing of
# HALF_KNOWN_MIN ago, if surely examined, is recalled with probability 0.5; RECALL_NOISE is that of
# the activation.
FADING, HALF_KNOWN_MIN, RECALL_NOISE = 0.5, 120.0, 0.4
# Median listening time in minutes, standard deviation of its logarithm, and the minutes that count
# at most in the truth: the cap of the outcome `stay` of `spaces`.
STAY_MIN, STAY_SD, STAY_CAP_MIN = 20.0, 0.9, 60.0
# Share of the distance to MAX_TASTE by which a join moves the taste for its topic.
DRIFT, MAX_TASTE = 0.04, 2.5
# After every world's end.
NEVER_MS = 1 << 62
# Probability that a friend inside invites, and that a guest whom the viewer follows is a reason to
# come.
INVITES, ATTRACTS = 0.4, 0.6
# Whether a friend inside invites: not, and so.
INVITED = np.array([[0.0], [1.0]])


class Around(NamedTuple):
    """What surrounds rows [R]: listeners in the Space, and the viewer's friends among them.

    `recalled` is the probability that the viewer recalls passing the Space over.
    """

    listeners: I64
    friends: I64
    recalled: F64


@dataclass(frozen=True)
class Response:
    """Response of one viewer to one slate; R rows as shown.

    A time is valid where its flag is set.
    """

    p_click: F64
    p_join: F64
    p_hide: F64
    examination: F64
    # Mean logarithm of the minutes of a stay, as if no Space ended.
    log_minutes: F64
    clicked: Bools
    joined: Bools
    hidden: Bools
    # The time of a hide, too.
    click_ms: I64
    join_ms: I64
    leave_ms: I64


class World:
    """Population and process; the same seed, viewers and span give the same world."""

    def __init__(
        self,
        *,
        seed: int,
        viewers: int,
        start_ms: int,
        end_ms: int,
        curve: ExaminationCurve = "decay",
        unkind: Collection[Unkind] = (),
    ) -> None:
        streams = [default_rng(child) for child in SeedSequence(seed).spawn(4)]
        self.curve = curve
        self.unkind = unkind
        self.end_ms = end_ms
        popularity = topics_by_language(streams[0])
        self.topic_hour = streams[0].uniform(0.0, 24.0, size=len(TOPICS))
        self.hosts = Hosts.draw(streams[1], popularity)
        self.spaces = Spaces.draw(streams[2], self.hosts, start_ms, end_ms)
        self.viewers = Viewers.draw(streams[3], viewers, self.hosts, popularity)

    def extend(self, rng: Generator, end_ms: int) -> None:
        """Extend the world to end_ms with more Spaces, numbered after the existing ones."""
        self.spaces = self.spaces.extended(rng, self.hosts, self.end_ms, end_ms)
        self.end_ms = end_ms

    def hour(self, viewer: int | I64, ts_ms: int | I64) -> F64:
        """Return the hour of the day at the viewer's place."""
        return local_hour(ts_ms, self.viewers.utc_offset_h[viewer])

    def follows(self, viewer: int, space: I64) -> tuple[Bools, I64]:
        """Return whether the viewer follows the Space's host, and how many of its guests, [R]."""
        followed = np.zeros(NUM_HOSTS + 1, dtype=np.bool_)
        followed[self.viewers.follows[viewer]] = True
        # What pads the lists is -1.
        followed[-1] = False
        return followed[self.spaces.host[space]], followed[self.spaces.guests[space]].sum(axis=1)

    def retrieve(self, rng: Generator, viewer: int, ts_ms: int, audience: Audience) -> I64:
        """Return up to SLATE live Spaces for a visit, unordered.

        Widely popular Spaces, and those with a followed host or guest or a friend inside, come
        first, then those of the viewer's language, then any. Those that the viewer is in, or hid,
        are left out.
        """
        live = self.spaces.live(ts_ms)
        live = live[~_among(live, audience.of(viewer, ts_ms))]
        if len(live) <= SLATE:
            return live
        key = rng.random(len(live))
        key += self.spaces.language[live] == self.viewers.language[viewer]
        follows, num_guests = self.follows(viewer, live)
        key += 2.0 * (follows | (num_guests > 0) | _among(live, audience.inside(viewer, ts_ms)))
        key[np.argpartition(-audience.listeners[live], NUM_POPULAR)[:NUM_POPULAR]] += 2.0
        return live[np.argpartition(-key, SLATE)[:SLATE]]

    def probabilities(self, viewer: int, space: I64, ts_ms: int, around: Around) -> tuple[F64, F64, F64]:
        """Return the true P(click), P(join) and P(hide) of each row if examined, at any position.

        `space` and `around` are [R]. Only what is not clicked is hidden.
        """
        spaces, viewers = self.spaces, self.viewers
        topic = spaces.topic[space]
        taste = viewers.tastes[viewer, topic]
        same_language = spaces.language[space] == viewers.language[viewer]
        quality = spaces.quality_at(space, ts_ms)
        follows, num_guests = self.follows(viewer, space)
        attracted = 1.0 - (1.0 - ATTRACTS) ** num_guests
        bait = self.hosts.bait[spaces.host[space]]
        age_ms = ts_ms - spaces.started_ms[space]
        phase = age_ms / (spaces.ends_ms[space] - spaces.started_ms[space])
        angle = (self.hour(viewer, ts_ms) - self.topic_hour[topic]) * (2.0 * np.pi / 24.0)
        click = (
            -3.95
            + taste
            + 1.9 * same_language
            + 1.6 * follows
            + 0.65 * quality
            # Social proof.
            + 0.15 * np.log1p(around.listeners)
            # About 1.2 less at the very start or end of a Space than at its best moment.
            - 1.2 * (2.0 * (phase - spaces.peak[space])) ** 2
            - 0.15 * np.log1p(age_ms / (30 * MINUTE_MS))
            # The topic's preferred time of day.
            + 0.4 * np.cos(angle)
            + 0.4 * viewers.eagerness[viewer]
            + 1.3 * attracted
            - 1.4 * around.recalled
            + 0.6 * bait
        )
        join = -0.95 + 0.3 * taste + 0.65 * quality + 0.8 * same_language + 0.3 * bait
        # Of what was looked at and not clicked.
        hide = -7.5 - 0.5 * taste - 0.5 * same_language + 0.7 * viewers.touchiness[viewer] + 5.0 * bait
        # [2, R]: not invited by a friend, and invited.
        p_click = expit(click + 1.5 * INVITED)
        p_join = p_click * expit(join + 0.6 * INVITED)
        not_invited = (1.0 - INVITES) ** around.friends
        share = np.array([not_invited, 1.0 - not_invited])
        p_click, p_join = (share * p_click).sum(axis=0), (share * p_join).sum(axis=0)
        return p_click, p_join, (1.0 - p_click) * expit(hide)

    def order(self, rng: Generator, viewer: int, space: I64, ts_ms: int, audience: Audience) -> I64:
        """Return the Spaces [R] as the popular arm shows them.

        The largest audience is first, and among equals the newest. In a world with a hidden signal,
        the order is that of P(join), not precisely known.
        """
        if "hidden" in self.unkind:
            _, p_join, _ = self.probabilities(viewer, space, ts_ms, audience.around(viewer, space, ts_ms))
            return space[np.argsort(-np.log(p_join) - rng.normal(0.0, HIDDEN_ERROR, len(space)))]
        return space[np.lexsort((-space, -audience.listeners[space]))]

    def log_minutes(self, viewer: int, space: I64) -> F64:
        """Return the mean logarithm [R] of the minutes of a stay, as if no Space ended."""
        spaces = self.spaces
        return np.asarray(
            np.log(STAY_MIN)
            + 0.7 * (self.viewers.tastes[viewer, spaces.topic[space]] - 1.0)
            + 0.4 * spaces.quality[space]
            - 0.8 * self.hosts.bait[spaces.host[space]],
            dtype=np.float64,
        )

    def minutes(self, log_minutes: F64, left_ms: I64) -> F64:
        """Return the expected minutes [R] of a stay, given a join `left_ms` before the Space's end.

        STAY_CAP_MIN of them count, and none after the end: it is the mean of the smaller one of a
        lognormal and a limit.
        """
        most = np.minimum(left_ms / MINUTE_MS, STAY_CAP_MIN)
        z = (np.log(most) - log_minutes) / STAY_SD
        whole = np.exp(log_minutes + STAY_SD**2 / 2) * ndtr(z - STAY_SD)
        return np.asarray(whole + most * ndtr(-z), dtype=np.float64)

    def examination(self, p_join: F64) -> F64:
        """Return the probability that a viewer examines each of these positions.

        `p_join` [R] is P(join) of what they show, if examined, on which a cascade depends (Craswell
        et al. 2008, "An experimental comparison of click position-bias models").
        """
        position = np.arange(len(p_join))
        if self.curve == "cascade":
            return np.asarray(np.cumprod(_goes_on(p_join)), dtype=np.float64)
        if self.curve == "steps":
            return np.array(STEP_EXAMINATION)[np.searchsorted(STEPS, position, side="right") - 1]
        if self.curve == "none":
            return np.ones(len(p_join))
        return np.asarray(1.0 / (1.0 + position / HALF_EXAMINED), dtype=np.float64)

    def respond(self, rng: Generator, viewer: int, shown: I64, ts_ms: int, audience: Audience) -> Response:
        """Draw a viewer's response to Spaces shown in this order.

        Clicks and hides come within a minute, a join within 90 s of its click, or within two hours
        where joins come late; a viewer who joined leaves by the Space's end.
        """
        around = audience.around(viewer, shown, ts_ms)
        p_click, p_join, p_hide = self.probabilities(viewer, shown, ts_ms, around)
        examination = self.examination(p_join)
        draw = rng.random((4, len(shown)))
        # One number decides all three: below p_join is a join, below p_click a click, and at the
        # other end a hide, which excludes both.
        looked = draw[0] < examination
        if self.curve == "cascade":
            looked = np.logical_and.accumulate(draw[0] < _goes_on(draw[1] < p_join))
        clicked = looked & (draw[1] < p_click)
        joined = clicked & (draw[1] < p_join)
        hidden = looked & (draw[1] > 1.0 - p_hide)
        ends_ms = self.spaces.ends_ms[shown]
        left_ms = ends_ms - ts_ms
        click_ms = ts_ms + np.minimum(1_000 + 59_000 * draw[2] ** 2, left_ms / 3).astype(np.int64)
        longest_ms, room_ms = (LATE_MS, left_ms / 2) if "late" in self.unkind else (90_000, left_ms / 3)
        after_ms = 1_000 + (longest_ms - 1_000) * draw[3] ** 2
        join_ms = click_ms + np.minimum(after_ms, room_ms).astype(np.int64)
        log_minutes = self.log_minutes(viewer, shown)
        listen_ms = (MINUTE_MS * rng.lognormal(log_minutes, STAY_SD)).astype(np.int64)
        leave_ms = np.minimum(join_ms + listen_ms, ends_ms)
        truth = (p_click, p_join, p_hide, examination, log_minutes)
        return Response(*truth, clicked, joined, hidden, click_ms, join_ms, leave_ms)

    def update_tastes(self, viewer: int, joined: I64) -> None:
        """Move the viewer's tastes a little towards the topics of the Spaces joined."""
        tastes = self.viewers.tastes[viewer]
        for topic in self.spaces.topic[joined].tolist():
            tastes[topic] += DRIFT * max(0.0, MAX_TASTE - tastes[topic])


def _among(space: I64, chosen: I64) -> Bools:
    """Return which Spaces are among the chosen, a few."""
    return np.asarray((space[:, None] == chosen).any(axis=1), dtype=np.bool_)


def _goes_on(joins: F64 | Bools) -> F64:
    """Return P(looking at a position after the one above), given the joins [R]."""
    return np.append(1.0, GOES_ON * (1.0 - STOPS * joins))[: len(joins)]


class Audience:
    """Listeners of each Space over time, and what viewers passed over.

    Through both, earlier rankings affect later ones. Joins and leaves are queued and applied in
    time order. `friends` are those of the viewers.
    """

    def __init__(self, num_spaces: int, friends: I64) -> None:
        # [S], as of the last `advance`.
        self.listeners: I64 = np.zeros(num_spaces, dtype=np.int64)
        self._friends = friends
        self._ahead: list[tuple[int, int, int]] = []
        # Of each viewer, the time of joining and of leaving, by Space.
        self._stays: defaultdict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
        # Of each viewer, the visits: time, Spaces shown and not clicked, their examination.
        self._passed: defaultdict[int, list[tuple[int, I64, F64]]] = defaultdict(list)

    def add(self, viewer: int, shown: I64, ts_ms: int, response: Response) -> None:
        """Queue the stays of a viewer who joined, and remember what was passed over."""
        for row in np.flatnonzero(response.joined).tolist():
            space, join_ms = int(shown[row]), int(response.join_ms[row])
            leave_ms = int(response.leave_ms[row])
            heapq.heappush(self._ahead, (join_ms, space, 1))
            heapq.heappush(self._ahead, (leave_ms, space, -1))
            self._stays[viewer][space] = join_ms, leave_ms
        # What a viewer hid is not shown again: as a stay in it that nobody sees.
        self._stays[viewer] |= dict.fromkeys(shown[response.hidden].tolist(), (NEVER_MS, NEVER_MS))
        passed = ~response.clicked
        recent = [visit for visit in self._passed[viewer] if visit[0] >= ts_ms - MAX_LIFE_MS]
        self._passed[viewer] = [*recent, (ts_ms, shown[passed], response.examination[passed])]

    def advance(self, ts_ms: int) -> None:
        """Apply all joins and leaves strictly before ts_ms."""
        while self._ahead and self._ahead[0][0] < ts_ms:
            _, space, change = heapq.heappop(self._ahead)
            self.listeners[space] += change

    def of(self, viewer: int, ts_ms: int) -> I64:
        """Return the Spaces that the viewer is in at ts_ms, or about to join, or hid."""
        stays = {space: stay for space, stay in self._stays[viewer].items() if stay[1] >= ts_ms}
        self._stays[viewer] = stays
        return np.array(list(stays), dtype=np.int64)

    def inside(self, viewer: int, ts_ms: int) -> I64:
        """Return the Spaces in which friends of the viewer are, one for each friend inside."""
        found = [
            space
            for friend in self._friends[viewer].tolist()
            for space, (join_ms, leave_ms) in self._stays.get(friend, {}).items()
            if join_ms < ts_ms <= leave_ms
        ]
        return np.array(found, dtype=np.int64)

    def around(self, viewer: int, space: I64, ts_ms: int) -> Around:
        """Return what surrounds these Spaces [R] for a viewer at the time of the last `advance`."""
        trace = np.zeros(len(self.listeners))
        for shown_ms, passed, examination in self._passed[viewer]:
            trace[passed] += examination * (max(1, ts_ms - shown_ms) / MINUTE_MS) ** -FADING
        strength = (trace[space] * HALF_KNOWN_MIN**FADING) ** (1.0 / RECALL_NOISE)
        friends = (space[:, None] == self.inside(viewer, ts_ms)).sum(axis=1)
        return Around(self.listeners[space], friends, strength / (1.0 + strength))
