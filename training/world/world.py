"""World simulator: how likely viewers are to do what, and responses drawn from that.

In shapes, R is the number of rows, each a pair of a viewer and a Space, and S of Spaces.
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

# How examination falls with the position: as 1 / (1 + position / 12), in steps, or not at all. In a
# cascade, it also depends on what was shown above.
ExaminationCurve = Literal["decay", "steps", "none", "cascade"]
# What a log may contain against the assumptions of the methods. "hidden" is an order that knew
# tastes and qualities of which no feature tells. "late" are joins after the label's window.
Unkind = Literal["hidden", "late"]

# The number of candidates in an exposure, if that many are live.
SLATE = 55
# This many of them are the most popular ones of all languages.
NUM_POPULAR = 12
# The position, from 0, that half of the viewers examine if examination decays.
HALF_EXAMINED = 12.0
# The first position, from 0, of each step of examination, and below the probability at each step.
STEPS = (0, 6, 14)
STEP_EXAMINATION = (0.95, 0.35, 0.12)
# In a cascade, the probabilities that a viewer looks at the next candidate, and that a viewer stops
# looking after a join.
GOES_ON, STOPS = 0.96, 0.9
# An order that knows log P(join) knows it with an error of this standard deviation.
HIDDEN_ERROR = 0.7
# If joins come late, the longest time from a click to its join. Half of them come in a quarter of
# it.
LATE_MS = 120 * MINUTE_MS
# How memory fades, like activation in ACT-R (Anderson and Schooler 1991, "Reflections of the
# environment in memory"). A Space that was shown t minutes ago adds t ** -FADING. If it was shown
# once, HALF_KNOWN_MIN ago, and certainly examined, it is recalled with probability 0.5.
# RECALL_NOISE is the noise of the activation.
FADING, HALF_KNOWN_MIN, RECALL_NOISE = 0.5, 120.0, 0.4
# The median listening time in minutes, the standard deviation of its logarithm, and the most
# minutes that count in the truth, which is the cap of the outcome `stay` of `spaces`.
STAY_MIN, STAY_SD, STAY_CAP_MIN = 20.0, 0.9, 60.0
# A join moves the taste for its topic towards MAX_TASTE by this share of the distance.
DRIFT, MAX_TASTE = 0.04, 2.5
# A time after the end of every world.
NEVER_MS = 1 << 62
# The probability that a friend inside invites, and that a guest whom the viewer follows is a reason
# to come.
INVITES, ATTRACTS = 0.4, 0.6
# The two cases: no friend invites, or one does.
INVITED = np.array([[0.0], [1.0]])


class Around(NamedTuple):
    """For rows [R], the listeners in the Space, and the viewer's friends among them.

    `recalled` is the probability that the viewer remembers having passed the Space over.
    """

    listeners: I64
    friends: I64
    recalled: F64


@dataclass(frozen=True)
class Response:
    """The response of one viewer to one slate, in R rows in the order shown.

    A time is only valid where its flag is set.
    """

    p_click: F64
    p_join: F64
    p_hide: F64
    examination: F64
    # The mean logarithm of the minutes of a stay, if no Space ever ended.
    log_minutes: F64
    clicked: Bools
    joined: Bools
    hidden: Bools
    # The time of a click, or of a hide.
    click_ms: I64
    join_ms: I64
    leave_ms: I64


class World:
    """A population and what it does. The same seed, viewers and time span give the same world."""

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
        """Return [R] whether the viewer follows the Space's host, and how many of its guests."""
        followed = np.zeros(NUM_HOSTS + 1, dtype=np.bool_)
        followed[self.viewers.follows[viewer]] = True
        # The lists are padded with -1, which is nobody.
        followed[-1] = False
        return followed[self.spaces.host[space]], followed[self.spaces.guests[space]].sum(axis=1)

    def retrieve(self, rng: Generator, viewer: int, ts_ms: int, audience: Audience) -> I64:
        """Return up to SLATE live Spaces for a visit, in no particular order.

        Widely popular Spaces, and those with a followed host, a followed guest or a friend inside,
        are taken first. Then come those of the viewer's language, and then any others. Spaces that
        the viewer is in or has hidden are left out.
        """
        live = self.spaces.live(ts_ms)
        live = live[~np.isin(live, audience.of(viewer, ts_ms))]
        if len(live) <= SLATE:
            return live
        key = rng.random(len(live))
        key += self.spaces.language[live] == self.viewers.language[viewer]
        follows, num_guests = self.follows(viewer, live)
        key += 2.0 * (follows | (num_guests > 0) | np.isin(live, audience.inside(viewer, ts_ms)))
        key[np.argpartition(-audience.listeners[live], NUM_POPULAR)[:NUM_POPULAR]] += 2.0
        return live[np.argpartition(-key, SLATE)[:SLATE]]

    def probabilities(self, viewer: int, space: I64, ts_ms: int, around: Around) -> tuple[F64, F64, F64]:
        """Return the true P(click), P(join) and P(hide) of each row [R] if it is looked at.

        They do not depend on the position. Only what is not clicked can be hidden.
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
            # Social proof: people join where others are.
            + 0.15 * np.log1p(around.listeners)
            # At the very start or end of a Space, this is about 1.2 less than at its best moment.
            - 1.2 * (2.0 * (phase - spaces.peak[space])) ** 2
            - 0.15 * np.log1p(age_ms / (30 * MINUTE_MS))
            # A topic has a preferred time of day.
            + 0.4 * np.cos(angle)
            + 0.4 * viewers.eagerness[viewer]
            + 1.3 * attracted
            - 1.4 * around.recalled
            + 0.6 * bait
        )
        join = -0.95 + 0.3 * taste + 0.65 * quality + 0.8 * same_language + 0.3 * bait
        # The logit of a hide, for what was looked at but not clicked.
        hide = -7.5 - 0.5 * taste - 0.5 * same_language + 0.7 * viewers.touchiness[viewer] + 5.0 * bait
        # [2, R], the two cases of INVITED.
        p_click = expit(click + 1.5 * INVITED)
        p_join = p_click * expit(join + 0.6 * INVITED)
        not_invited = (1.0 - INVITES) ** around.friends
        share = np.array([not_invited, 1.0 - not_invited])
        p_click, p_join = (share * p_click).sum(axis=0), (share * p_join).sum(axis=0)
        return p_click, p_join, (1.0 - p_click) * expit(hide)

    def order(self, rng: Generator, viewer: int, space: I64, ts_ms: int, audience: Audience) -> I64:
        """Return the Spaces [R] in the popular order, as the log's ranker shows them.

        The largest audience comes first, and among equals the newest Space. In a world with a
        hidden signal, the order is by P(join), which the ranker knows with an error.
        """
        if "hidden" in self.unkind:
            _, p_join, _ = self.probabilities(viewer, space, ts_ms, audience.around(viewer, space, ts_ms))
            return space[np.argsort(-np.log(p_join) - rng.normal(0.0, HIDDEN_ERROR, len(space)))]
        return space[np.lexsort((-space, -audience.listeners[space]))]

    def log_minutes(self, viewer: int, space: I64) -> F64:
        """Return the mean logarithm [R] of the minutes of a stay, if no Space ever ended."""
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

        At most STAY_CAP_MIN of them count, and none after the end. So this is the mean of the
        minimum of a lognormal variable and a limit.
        """
        most = np.minimum(left_ms / MINUTE_MS, STAY_CAP_MIN)
        z = (np.log(most) - log_minutes) / STAY_SD
        whole = np.exp(log_minutes + STAY_SD**2 / 2) * ndtr(z - STAY_SD)
        return np.asarray(whole + most * ndtr(-z), dtype=np.float64)

    def examination(self, p_join: F64) -> F64:
        """Return the probability [R] that a viewer looks at each position.

        `p_join` [R] is P(join) of what the positions show, if it is looked at. A cascade depends on
        it (Craswell et al. 2008, "An experimental comparison of click position-bias models").
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

        Clicks and hides come within a minute. A join comes within 90 s of its click, or within two
        hours if joins come late. A viewer who joined leaves at the Space's end at the latest.
        """
        around = audience.around(viewer, shown, ts_ms)
        p_click, p_join, p_hide = self.probabilities(viewer, shown, ts_ms, around)
        examination = self.examination(p_join)
        draw = rng.random((4, len(shown)))
        # One random number decides all three. Below p_join it means a join, below p_click a click,
        # and at the other end a hide, which excludes both.
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
        """Move the viewer's tastes a little towards the topics of the joined Spaces."""
        tastes = self.viewers.tastes[viewer]
        for topic in self.spaces.topic[joined].tolist():
            tastes[topic] += DRIFT * max(0.0, MAX_TASTE - tastes[topic])


def _goes_on(joins: F64 | Bools) -> F64:
    """Return the probability to look at the next position, given the joins [R] above it."""
    return np.append(1.0, GOES_ON * (1.0 - STOPS * joins))[: len(joins)]


class Audience:
    """The listeners of each Space over time, and what viewers have passed over.

    Through both, earlier rankings affect later ones. Joins and leaves are queued, and applied in
    the order of time. `friends` are the viewers' friends.
    """

    def __init__(self, num_spaces: int, friends: I64) -> None:
        # [S], at the time of the last `advance`.
        self.listeners: I64 = np.zeros(num_spaces, dtype=np.int64)
        self._friends = friends
        self._ahead: list[tuple[int, int, int]] = []
        # For each viewer and Space, the times of joining and of leaving.
        self._stays: defaultdict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
        # For each viewer, the visits: their time, the Spaces that were shown but not clicked, and
        # the examination of these.
        self._passed: defaultdict[int, list[tuple[int, I64, F64]]] = defaultdict(list)

    def add(self, viewer: int, shown: I64, ts_ms: int, response: Response) -> None:
        """Queue the stays of a viewer who joined, and remember what was passed over."""
        for row in np.flatnonzero(response.joined).tolist():
            space, join_ms = int(shown[row]), int(response.join_ms[row])
            leave_ms = int(response.leave_ms[row])
            heapq.heappush(self._ahead, (join_ms, space, 1))
            heapq.heappush(self._ahead, (leave_ms, space, -1))
            self._stays[viewer][space] = join_ms, leave_ms
        # A hidden Space is not shown again. It is stored as a stay that nobody sees.
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
        """Return the Spaces in which friends of the viewer are, once for each friend."""
        found = [
            space
            for friend in self._friends[viewer].tolist()
            for space, (join_ms, leave_ms) in self._stays.get(friend, {}).items()
            if join_ms < ts_ms <= leave_ms
        ]
        return np.array(found, dtype=np.int64)

    def around(self, viewer: int, space: I64, ts_ms: int) -> Around:
        """Return the surroundings of Spaces [R] for a viewer at the time of the last `advance`."""
        trace = np.zeros(len(self.listeners))
        for shown_ms, passed, examination in self._passed[viewer]:
            trace[passed] += examination * (max(1, ts_ms - shown_ms) / MINUTE_MS) ** -FADING
        strength = (trace[space] * HALF_KNOWN_MIN**FADING) ** (1.0 / RECALL_NOISE)
        friends = (space[:, None] == self.inside(viewer, ts_ms)).sum(axis=1)
        return Around(self.listeners[space], friends, strength / (1.0 + strength))
