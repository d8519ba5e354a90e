"""Which features a log's columns and events suggest."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import skew

from serve.features.slots import IMPRESSION
from training.drafting.funnel import Funnel, nice_ms, words
from training.drafting.leakage import ages_ms
from training.drafting.profile import Column

F64 = NDArray[np.float64]
Spec = dict[str, object]
MOST_CATEGORIES = 1_000  # of a category column; what has more is known by affinity alone
MOST_HOT = 100  # of a set as 0/1 columns
WIDE_AFFINITY = 64  # values of a category that a viewer's map keeps, at most; twice as many of a set
SHARED = 0.5  # of the smaller set of values: two fields speak of the same thing
MANY_IDS, SHARED_IDS = 100, 0.1  # so many long ids do not coincide by chance, and few may be live in one log
HEAVY_TAIL = 2.0  # skewness from which the logarithm is tried
SHORT_LIVED = 0.25  # of the log's span
COME_BACK = 1.5  # exposures a viewer, from which a viewer's own state is worth its place
DAY_MS = 86_400_000
WHAT, MOMENT, CANDIDATE, VIEWER = (
    "What they are.",
    "The moment.",
    "What goes on around the candidate.",
    "How this viewer takes to candidates like it.",
)


@dataclass(frozen=True)
class Feature:
    """A suggested feature: its spec as in the TOML, why, and the fields that it reads."""

    section: str
    name: str
    spec: Spec
    comment: str = ""
    fields: tuple[str, ...] = ()
    popular: bool = False

    @property
    def state(self) -> bool:
        """Whether it counts events."""
        return self.spec["kind"] in ("count", "gauge", "rate", "affinity")


class Toml:
    """Values and keys as TOML writes them on one line."""

    @staticmethod
    def of(value: object) -> str:
        """A string, number, list or inline table."""
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{Toml.key(k)} = {Toml.of(v)}" for k, v in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(Toml.of, value)) + "]"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    @staticmethod
    def key(name: str) -> str:
        """A bare key where it can be one."""
        return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else Toml.of(name)


@dataclass
class _Suggestions:
    found: list[Feature] = field(default_factory=list)

    def add(
        self,
        section: str,
        name: str,
        spec: Spec,
        comment: str = "",
        *,
        fields: tuple[str, ...] = (),
        popular: bool = False,
    ) -> None:
        """Add a feature; a name that is taken gets a number."""
        taken = {f.name for f in self.found}
        names = (name if i == 1 else f"{name}_{i}" for i in itertools.count(1))
        free = next(n for n in names if n not in taken)
        self.found.append(Feature(section, free, spec, comment, fields, popular))


def suggest(
    columns: list[Column], tables: dict[str, pa.Table], events: Funnel
) -> tuple[list[Feature], list[Column]]:
    """The features, and the columns, of which those that no feature can use have lost their type."""
    out = _Suggestions()
    usable = [c for c in columns if c.type]
    for c in usable:
        _own(out, c, tables, events)
    _pairs(out, usable)
    _candidate(out, events)
    _viewer(out, usable, events)
    used = {name for one in out.found for name in one.fields}
    columns = [
        dataclasses.replace(c, type=None, why=_useless(c)) if c.type and c.field not in used else c
        for c in columns
    ]
    return sorted(out.found, key=lambda f: (WHAT, MOMENT, CANDIDATE, VIEWER).index(f.section)), columns


def _useless(c: Column) -> str:
    if c.distinct <= 1:
        return "all its values are the same"
    if c.is_text:
        return c.why
    return f"{c.distinct:,} values are too many for columns of their own, and nothing else uses them"


def _name(c: Column) -> str:
    return f"viewer_{c.name}" if c.owner == "viewer" else c.name


def _own(out: _Suggestions, c: Column, tables: dict[str, pa.Table], events: Funnel) -> None:
    """The feature that a column makes alone, if it makes one."""
    section, name = MOMENT if c.owner == "context" else WHAT, _name(c)
    spec: Spec = {"field": c.field}
    if c.distinct <= 1 and c.type != "set":
        return
    if c.type == "time":
        age_s = np.maximum(ages_ms(c, tables, events), 0) / 1000
        spec = {"kind": "age", **spec, **_transform(age_s)}
        name = f"{name.removesuffix('_ms')}_age_s"
    elif c.type == "number" and c.numbers is not None:
        kind = "context" if c.owner == "context" else "number"
        spec = {"kind": kind, **spec, **_transform(c.numbers)}
    elif c.type == "category" and c.distinct <= MOST_CATEGORIES and not c.is_text:
        spec = {"kind": "category", **spec}
    elif c.type == "set" and c.distinct <= MOST_HOT:
        spec = {"kind": "multi_category", **spec}
    else:
        return
    out.add(section, name, spec, fields=(c.field,))


def _transform(numbers: F64) -> Spec:
    """`log1p` for a heavy tail that it shortens."""
    given = numbers[np.isfinite(numbers)]
    if len(np.unique(given[:1000])) < 3 and len(np.unique(given)) < 3:
        return {}
    tamed = np.sign(given) * np.log1p(np.abs(given))
    before, after = abs(float(skew(given))), abs(float(skew(tamed)))
    return {"transform": "log1p"} if before > HEAVY_TAIL and after < before else {}


def _pairs(out: _Suggestions, columns: list[Column]) -> None:
    """`match` and `member`: what viewer and candidate have in common."""
    theirs = [c for c in columns if c.owner == "candidate" and c.type == "category"]
    for v in (c for c in columns if c.owner == "viewer"):
        for c in theirs:
            both = len(v.values & c.values)
            fewer = min(len(v.values), len(c.values))
            if both < 2 or both < fewer * (SHARED if fewer < MANY_IDS else SHARED_IDS):
                continue
            kind, name = "member", f"{c.name}_in_{v.name}"
            if v.type == "category":
                kind, name = "match", f"same_{c.name}" if c.name == v.name else f"{v.name}_is_{c.name}"
            spec: Spec = {"kind": kind, "viewer": v.field, "candidate": c.field}
            out.add(WHAT, name, spec, f"they share {both:,} values", fields=(v.field, c.field))


def _counted(events: Funnel) -> list[str]:
    """The kinds worth counting: the label first, then by number, without what takes back or never follows."""
    able = [h for h in events.happenings.values() if h.positives and h.kind != IMPRESSION]
    able = [h for h in able if h.kind == events.label or not h.why_not.startswith("takes back")]
    return [h.kind for h in sorted(able, key=lambda h: (h.kind != events.label, -h.num, h.kind))][:4]


def _prior(events: Funnel, kind: str, share: float = 1.0) -> Spec:
    """The base rate, worth as many shown candidates as hold one event; `share` of that for rarer evidence."""
    rate = float(np.clip(float(f"{events.happenings[kind].rate:.2g}"), 0.0001, 0.9999))
    return {"rate": rate, "weight": int(np.clip(round(share / rate), 5, 200))}


def _rate(entity: str, events: Funnel, kind: str, half: Spec) -> Spec:
    prior = _prior(events, kind)
    return {"kind": "rate", "entity": entity, "event": kind, "over": IMPRESSION, **half, "prior": prior}


def _count(entity: str, kind: str, half: Spec) -> Spec:
    return {"kind": "count", "entity": entity, "event": kind, **half, "transform": "log1p"}


def _candidate(out: _Suggestions, events: Funnel) -> None:
    """Gauge, counts and rates of the candidate; half-lives by how long candidates are shown."""
    num_shown = np.bincount(events.candidate)
    first, last = np.full(len(num_shown), np.inf), np.full(len(num_shown), -np.inf)
    np.minimum.at(first, events.candidate, events.shown_ms)
    np.maximum.at(last, events.candidate, events.shown_ms)
    come_back = float(num_shown[num_shown > 0].mean()) >= 2
    lives_ms = (last - first)[num_shown > 1]
    life_ms = float(np.median(lives_ms)) if len(lives_ms) else 0.0
    is_short = 0 < life_ms < SHORT_LIVED * events.span_ms
    slow: Spec = {"half_life": words(nice_ms(life_ms))} if is_short else {}
    fast: Spec = {"half_life": words(nice_ms(life_ms / 5))} if is_short else {}
    why = "a candidate is shown for about as long" if is_short else "candidates stay, so nothing decays"
    why = why if come_back else "hardly a candidate is shown twice, so it says little"
    if events.gauge:
        up, down = events.gauge
        spec: Spec = {"kind": "gauge", "entity": "candidate", "up": up, "down": down, "transform": "log1p"}
        out.add(CANDIDATE, f"{up}_now", spec, popular=True)
    for kind in _counted(events) if come_back else [events.label]:
        popular = kind == events.label and not events.gauge
        out.add(CANDIDATE, f"{kind}_rate", _rate("candidate", events, kind, slow), why, popular=popular)
        why = ""
    if come_back:
        why = "a fifth of that, to see a candidate rise and fall" if is_short else ""
        for kind in (*_counted(events)[:2], IMPRESSION):
            name = f"recent_{kind}" if is_short else f"num_{kind}"
            out.add(CANDIDATE, name, _count("candidate", kind, fast), why)
            why = ""


def _viewer(out: _Suggestions, columns: list[Column], events: Funnel) -> None:
    """Counts, rates and affinities of viewers, where viewers come back."""
    known = events.viewer[events.viewer >= 0]
    if len(known) < COME_BACK * max(len(np.unique(known)), 1):
        return
    half_ms = int(np.clip(nice_ms(events.span_ms), 7 * DAY_MS, 90 * DAY_MS))
    half: Spec = {"half_life": words(half_ms)}
    label, before = events.label, _counted(events)[1:2]
    why = "as long as the log, but a week to a quarter"
    out.add(VIEWER, f"viewer_{label}_rate", _rate("viewer", events, label, half), why)
    for kind in (label, IMPRESSION):
        out.add(VIEWER, f"viewer_num_{kind}", _count("viewer", kind, half))
    for c in columns:
        is_known = c.owner == "candidate" and c.type in ("category", "set")
        if not is_known or c.distinct < 2 or c.is_text:
            continue
        keep = min(c.distinct, WIDE_AFFINITY * (2 if c.type == "set" else 1))
        why = f"keeps {keep} of {c.distinct:,}" if keep < c.distinct else ""
        # where values are few, the next most frequent kind of event tells taste sooner than a rare label
        for kind in [label, *before] if c.distinct <= WIDE_AFFINITY else [label]:
            prior = _prior(events, kind, 0.5)
            spec: Spec = {"kind": "affinity", "event": kind, "over": IMPRESSION, "field": c.field}
            spec |= {**half, "prior": prior, "keep": keep}
            out.add(VIEWER, f"{c.name}_{kind}_affinity", spec, why, fields=(c.field,))
