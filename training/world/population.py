"""The population of the simulated world: viewers, hosts and Spaces, drawn once from a seed.

In shapes, V is the number of viewers, H of hosts, S of Spaces, T of topics and R of rows. All times
are epoch milliseconds in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from serve.features.slots import F64, I64

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

TOPICS = (
    *("music", "football", "news", "politics", "crypto", "gaming", "comedy", "anime", "technology"),
    *("business", "faith", "film", "fitness", "fashion", "books", "science", "health", "food", "travel"),
    *("art", "education", "cricket", "dating", "cars"),
)
DEVICES = ("ios", "android", "web")
DEVICE_SHARES = (0.38, 0.5, 0.12)


class Place(NamedTuple):
    """A language in a country, with its share of the people and its clock."""

    language: str
    country: str
    share: float
    utc_offset_h: float


PLACES = (
    Place("en", "US", 0.170, -6.0),
    Place("en", "GB", 0.055, 0.0),
    Place("en", "IN", 0.050, 5.5),
    Place("en", "NG", 0.040, 1.0),
    Place("en", "CA", 0.025, -5.0),
    Place("ja", "JP", 0.140, 9.0),
    Place("es", "MX", 0.050, -6.0),
    Place("es", "ES", 0.030, 1.0),
    Place("es", "AR", 0.025, -3.0),
    Place("es", "CO", 0.015, -5.0),
    Place("pt", "BR", 0.080, -3.0),
    Place("pt", "PT", 0.010, 0.0),
    Place("ar", "SA", 0.040, 3.0),
    Place("ar", "EG", 0.025, 2.0),
    Place("ar", "AE", 0.010, 4.0),
    Place("hi", "IN", 0.065, 5.5),
    Place("tr", "TR", 0.045, 3.0),
    Place("id", "ID", 0.040, 7.0),
    Place("ko", "KR", 0.035, 9.0),
    Place("fr", "FR", 0.023, 1.0),
    Place("fr", "CI", 0.007, 0.0),
    Place("de", "DE", 0.014, 1.0),
    Place("uk", "UA", 0.006, 2.0),
)
LANGUAGES = tuple(dict.fromkeys(place.language for place in PLACES))
_PLACE_SHARES = np.array([place.share for place in PLACES])
_PLACE_LANGUAGE = np.array([LANGUAGES.index(place.language) for place in PLACES])
_PLACE_OFFSET_H = np.array([place.utc_offset_h for place in PLACES])

NUM_HOSTS = 3_000
NUM_FOLLOWS = 32
# The share of hosts whose Spaces are bait, and the range from which the strength of it is drawn.
BAITING, BAIT = 0.06, (0.5, 1.5)
# How many people a viewer meets, how many of them may speak any language, and how many become
# friends at most.
NUM_MET, NUM_ABROAD, NUM_FRIENDS = 96, 10, 32
# How many hosts a Space may invite, and how many are on stage beside its own host at most.
NUM_INVITED, NUM_GUESTS = 12, 4
# The quality of a Space rises and falls in waves. These are their number, their shortest period,
# its ratio to the longest, and their amplitude.
NUM_WAVES = 2
WAVE_MS, WAVE_RANGE = 25.0 * MINUTE_MS, 6.0
WAVE_AMPLITUDE = 0.45
# How many Spaces per hour would start if no host were live already.
STARTS_PER_HOUR = 265
MIN_LIFE_MS = 10 * MINUTE_MS
MAX_LIFE_MS = 5 * HOUR_MS
# A Space is not listed in its last ten seconds, so that a viewer who is shown it can still join.
CLOSING_MS = 10_000


def local_hour(ts_ms: int | I64, utc_offset_h: float | F64) -> F64:
    """Return the hour of the day at a place, 0 <= hour < 24."""
    return np.asarray((np.asarray(ts_ms) / HOUR_MS + utc_offset_h) % 24.0, dtype=np.float64)


def rhythm(hour: F64) -> F64:
    """Return the activity in an hour: 1 on average, low before dawn, high in the evening."""
    return np.asarray(1.0 + 0.75 * np.cos((hour - 20.5) / 24.0 * 2.0 * np.pi), dtype=np.float64)


def times(rng: Generator, utc_offset_h: F64, start_ms: int, end_ms: int) -> I64:
    """Draw one time in [start_ms, end_ms) for each clock, following the clock's daily rhythm."""
    edges = np.linspace(start_ms, end_ms, max(2, (end_ms - start_ms) // (5 * MINUTE_MS)) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    u = rng.random(len(utc_offset_h))
    drawn = np.empty(len(utc_offset_h))
    for offset_h in np.unique(utc_offset_h):
        here = utc_offset_h == offset_h
        mass = np.concatenate([[0.0], np.cumsum(rhythm((centres / HOUR_MS + offset_h) % 24.0))])
        drawn[here] = np.interp(u[here], mass / mass[-1], edges)
    return np.clip(drawn.astype(np.int64), start_ms, end_ms - 1)


def topics_by_language(rng: Generator) -> F64:
    """Draw the popularity of topics in each language, [languages, T]; each row sums to 1."""
    everywhere = rng.dirichlet(np.full(len(TOPICS), 2.0))
    here = rng.dirichlet(np.full(len(TOPICS), 0.8), size=len(LANGUAGES))
    return np.asarray(0.4 * everywhere + 0.55 * here + 0.05 / len(TOPICS), dtype=np.float64)


@dataclass
class Placed:
    """People, each at a place, which is an index into PLACES."""

    place: I64

    @property
    def language(self) -> I64:
        """Index into LANGUAGES."""
        return _PLACE_LANGUAGE[self.place]

    @property
    def utc_offset_h(self) -> F64:
        """The hours by which their clocks are ahead of UTC."""
        return _PLACE_OFFSET_H[self.place]


@dataclass
class Hosts(Placed):
    """Hosts, who open Spaces; H rows."""

    # The weight by which hosts gain followers; it is heavy-tailed and sums to 1.
    fame: F64
    # Each host's share of all Spaces; it sums to 1.
    activity: F64
    quality: F64
    # [H, T], the shares of the topics they talk about: one to three home topics, and a little of
    # all others.
    topics: F64
    # By how much their Spaces promise more than they hold. It is 0 for most hosts. Not in the log.
    bait: F64

    @classmethod
    def draw(cls, rng: Generator, popularity: F64) -> Hosts:
        """Draw NUM_HOSTS hosts, with home topics that are popular in their language."""
        place = rng.choice(len(PLACES), size=NUM_HOSTS, p=_PLACE_SHARES)
        fame = rng.pareto(1.1, size=NUM_HOSTS) + 0.1
        activity = rng.lognormal(0.0, 0.5, size=NUM_HOSTS) * fame**0.3
        here = popularity[_PLACE_LANGUAGE[place]]
        home = _favourites(rng, here, rng.integers(1, 4, size=NUM_HOSTS))
        topics = 0.88 * home / home.sum(axis=1, keepdims=True) + 0.12 * here
        quality = rng.normal(size=NUM_HOSTS)
        bait = (rng.random(NUM_HOSTS) < BAITING) * rng.uniform(*BAIT, size=NUM_HOSTS)
        return cls(place, fame / fame.sum(), activity / activity.sum(), quality, topics, bait)


@dataclass
class Viewers(Placed):
    """Viewers, who visit the tab; V rows."""

    device: I64
    # [V, T], about 0 for a topic of no interest and 2 for a favourite. Tastes move with each join,
    # and are not in the log.
    tastes: F64
    # The general inclination to click; not in the log.
    eagerness: F64
    # The general inclination to hide what does not please; not in the log.
    touchiness: F64
    # Each viewer's share of all visits; it sums to 1.
    activity: F64
    # [V, NUM_FOLLOWS], hosts, padded with -1.
    follows: I64
    # [V, up to NUM_FRIENDS], viewers whom this one knows, padded with -1.
    friends: I64

    @classmethod
    def draw(cls, rng: Generator, num: int, hosts: Hosts, popularity: F64) -> Viewers:
        """Draw `num` viewers. They follow hosts, and know viewers, of their language and taste."""
        place = rng.choice(len(PLACES), size=num, p=_PLACE_SHARES)
        device = rng.choice(len(DEVICES), size=num, p=DEVICE_SHARES)
        favourite = _favourites(rng, popularity[_PLACE_LANGUAGE[place]], rng.integers(2, 6, size=num))
        tastes = rng.normal(0.0, 0.5, size=(num, len(TOPICS)))
        tastes += favourite * rng.normal(2.0, 0.5, size=tastes.shape)
        eagerness, touchiness = rng.normal(size=(2, num))
        activity = rng.lognormal(0.0, 0.7, size=num)
        num_follows = np.minimum(rng.geometric(1 / 14, size=num) - 1, NUM_FOLLOWS)
        nobody = np.empty((0, 0), np.int64)
        viewers = cls(place, device, tastes, eagerness, touchiness, activity / activity.sum(), nobody, nobody)
        viewers.follows = viewers._draw_follows(rng, num_follows, hosts)
        viewers.friends = viewers._draw_friends(rng)
        return viewers

    def __len__(self) -> int:
        return len(self.place)

    def visits(self, rng: Generator, num: int, start_ms: int, end_ms: int) -> tuple[I64, I64]:
        """Draw `num` visits, and return their times in order and their viewers."""
        viewer = rng.choice(len(self), size=num, p=self.activity)
        ts_ms = times(rng, self.utc_offset_h[viewer], start_ms, end_ms)
        order = np.argsort(ts_ms, kind="stable")
        return ts_ms[order], viewer[order].astype(np.int64)

    def _draw_follows(self, rng: Generator, num_follows: I64, hosts: Hosts) -> I64:
        follows = np.full((len(self), NUM_FOLLOWS), -1, dtype=np.int64)
        log_fame = np.log(hosts.fame)
        for viewer, num in enumerate(num_follows):
            foreign = hosts.language != self.language[viewer]
            # Gumbel top-k draws hosts without replacement, by exp(log_fame + taste - 4 if foreign).
            key = log_fame + hosts.topics @ self.tastes[viewer] - 4.0 * foreign
            key += rng.gumbel(size=NUM_HOSTS)
            follows[viewer, :num] = np.sort(np.argpartition(-key, num)[:num])
        return follows

    def _draw_friends(self, rng: Generator) -> I64:
        sociable = rng.pareto(2.0, size=len(self)) + 0.5
        met = _meet(rng, self.language, self.language, sociable, NUM_MET)
        met[:, :NUM_ABROAD] = rng.choice(len(self), size=(len(self), NUM_ABROAD), p=sociable / sociable.sum())
        alike = np.array([self.tastes[met[viewer]] @ self.tastes[viewer] for viewer in range(len(self))])
        num_friends = 4.0 * (1.0 + rng.pareto(1.2, size=len(self)))
        friends = _closest(rng, met, alike / 12.0, np.minimum(num_friends, NUM_FRIENDS))
        return np.where(friends == np.arange(len(self))[:, None], -1, friends)


@dataclass
class Spaces:
    """Audio rooms in the order of their start; S rows.

    `quality` and its waves, `peak` and a future end are not in the log.
    """

    started_ms: I64
    ends_ms: I64
    host: I64
    topic: I64
    language: I64
    quality: F64
    # When a Space is at its best, as a share of its life from 0 to 1.
    peak: F64
    speakers: I64
    # The time at which more speakers join the stage; it is after the end if none do.
    grown_ms: I64
    grown_speakers: I64
    # [S, NUM_GUESTS], the hosts on stage beside the Space's own host, padded with -1.
    guests: I64
    # [S, NUM_WAVES], the periods of the waves, and their phases at the start in radians.
    wave_ms: F64
    wave_phase: F64

    @classmethod
    def draw(cls, rng: Generator, hosts: Hosts, start_ms: int, end_ms: int) -> Spaces:
        """Draw all Spaces that are live in [start_ms, end_ms); a host has one at a time."""
        spaces = cls._starting(rng, hosts, start_ms - MAX_LIFE_MS, end_ms)
        rows = _one_at_a_time(spaces)
        return spaces._at(rows[spaces.ends_ms[rows] > start_ms])

    def extended(self, rng: Generator, hosts: Hosts, start_ms: int, end_ms: int) -> Spaces:
        """Return these Spaces, which began before start_ms, followed by new ones until end_ms."""
        more = self._starting(rng, hosts, start_ms, end_ms)
        columns = vars(more).items()
        both = Spaces(**{name: np.concatenate([getattr(self, name), column]) for name, column in columns})
        # These Spaces never overlap, so the filter keeps all of them.
        return both._at(_one_at_a_time(both))

    @classmethod
    def _starting(cls, rng: Generator, hosts: Hosts, start_ms: int, end_ms: int) -> Spaces:
        """Draw Spaces that start in [start_ms, end_ms), unordered, as if no host were live yet."""
        num = round(STARTS_PER_HOUR * (end_ms - start_ms) / HOUR_MS)
        host = rng.choice(NUM_HOSTS, size=num, p=hosts.activity)
        started_ms = times(rng, hosts.utc_offset_h[host], start_ms, end_ms)
        quality = 0.9 * hosts.quality[host] + 0.4 * rng.normal(size=num)
        life_ms = np.exp(rng.normal(np.log(70 * MINUTE_MS), 0.7, size=num) + 0.1 * quality)
        ends_ms = started_ms + np.clip(life_ms, MIN_LIFE_MS, MAX_LIFE_MS).astype(np.int64)
        topic = (np.cumsum(hosts.topics[host], axis=1) < rng.random((num, 1))).sum(axis=1)
        topic = np.minimum(topic, len(TOPICS) - 1)
        peak = rng.uniform(0.2, 0.6, size=num)
        speakers = 1 + rng.poisson(np.exp(0.5 + 0.35 * quality))
        grown_ms = started_ms + ((ends_ms - started_ms) * rng.uniform(0.1, 3.0, size=num)).astype(np.int64)
        return cls(
            started_ms,
            ends_ms,
            host.astype(np.int64),
            topic,
            hosts.language[host],
            quality,
            peak,
            speakers,
            grown_ms,
            speakers + 1 + rng.poisson(1.0, size=num),
            _draw_guests(rng, hosts, host, topic, speakers),
            WAVE_MS * WAVE_RANGE ** rng.random((num, NUM_WAVES)),
            rng.uniform(0.0, 2.0 * np.pi, size=(num, NUM_WAVES)),
        )

    def _at(self, rows: I64) -> Spaces:
        return Spaces(**{name: column[rows] for name, column in vars(self).items()})

    def __len__(self) -> int:
        return len(self.started_ms)

    def quality_at(self, space: I64, ts_ms: int | I64) -> F64:
        """Return the quality [R] of Spaces at a time: each Space's own quality plus its waves."""
        lived_ms = np.asarray(ts_ms - self.started_ms[space])[:, None]
        wave = np.sin(2.0 * np.pi * lived_ms / self.wave_ms[space] + self.wave_phase[space])
        return np.asarray(self.quality[space] + WAVE_AMPLITUDE * wave.sum(axis=1), dtype=np.float64)

    def live(self, ts_ms: int) -> I64:
        """Return the Spaces that are listed at a time: they have begun and are not closing."""
        low, high = np.searchsorted(self.started_ms, [ts_ms - MAX_LIFE_MS, ts_ms])
        return np.asarray(low + np.flatnonzero(self.ends_ms[low:high] >= ts_ms + CLOSING_MS), dtype=np.int64)


def _draw_guests(rng: Generator, hosts: Hosts, host: I64, topic: I64, speakers: I64) -> I64:
    """Draw the guests of Spaces. Some of the speakers are hosts who talk about its topic."""
    met = _meet(rng, hosts.language[host], hosts.language, hosts.fame**0.5, NUM_INVITED)
    num_guests = rng.binomial(np.minimum(speakers - 1, NUM_GUESTS), 0.5)
    guests = _closest(rng, met, np.log(hosts.topics[met, topic[:, None]]), num_guests)
    return np.where(guests == host[:, None], -1, guests)


def _meet(rng: Generator, mine: I64, theirs: I64, weight: F64, num: int) -> I64:
    """Draw for each of N languages `num` people who speak it, by their weight, [N, num]."""
    met = np.empty((len(mine), num), dtype=np.int64)
    for language in np.unique(mine):
        here, there = np.flatnonzero(mine == language), np.flatnonzero(theirs == language)
        met[here] = rng.choice(there, size=(len(here), num), p=weight[there] / weight[there].sum())
    return met


def _closest(rng: Generator, met: I64, closeness: F64, num: F64 | I64) -> I64:
    """Draw up to num[n] different people of met[n] by exp(closeness), padded with -1."""
    order = np.argsort(-closeness - rng.gumbel(size=met.shape), axis=1)
    chosen = np.take_along_axis(met, order, axis=1)[:, : int(num.max())]
    chosen = np.sort(np.where(np.arange(chosen.shape[1]) < num.astype(np.int64)[:, None], chosen, -1), axis=1)
    chosen[:, 1:][chosen[:, 1:] == chosen[:, :-1]] = -1
    return chosen


def _favourites(rng: Generator, weights: F64, num: I64) -> F64:
    """Draw for each row of weights [N, T] num[n] different topics, as a row of 0 and 1."""
    key = np.log(weights) + rng.gumbel(size=weights.shape)
    rank = np.argsort(np.argsort(-key, axis=1), axis=1)
    return (rank < num[:, None]).astype(np.float64)


def _one_at_a_time(spaces: Spaces) -> I64:
    """Return the Spaces in order of start, without those whose host is in another one already."""
    kept = []
    free_ms: dict[int, int] = {}
    hosts, starts, ends = spaces.host.tolist(), spaces.started_ms.tolist(), spaces.ends_ms.tolist()
    for space in np.argsort(spaces.started_ms, kind="stable").tolist():
        if starts[space] > free_ms.get(hosts[space], -1):
            kept.append(space)
            free_ms[hosts[space]] = ends[space]
    return np.array(kept, dtype=np.int64)
