"""Suggested features of a surface, from the columns and events of a log."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import skew

from serve.contract.validation import duration
from serve.features.registry import KINDS
from serve.features.slots import F64, IMPRESSION
from training.drafting.funnel import Funnel, round_up_ms
from training.drafting.leakage import ages_ms
from training.drafting.profile import Column

Spec = dict[str, object]
# Largest vocabulary of a category feature. Columns with more values serve affinities only.
MAX_CATEGORIES = 1_000
# Largest vocabulary of a set as 0/1 columns.
MAX_HOT = 100
TOO_WIDE = "too many for a feature of their own; the features that compare or count them use them"
# Values of a category that a viewer's affinity keeps; a set keeps twice as many.
WIDE_AFFINITY = 64
# Two fields have the same meaning if they share this part of the smaller set of values.
SHARED = 0.5
# From 100 ids on 10 % in common are enough: that is not chance, and a log may hold few live ids.
MANY_IDS, SHARED_IDS = 100, 0.1
# Try the logarithm from this skewness on.
HEAVY_TAIL = 2.0
# Candidates are short-lived if they are shown for less than this share of the log's span.
SHORT_LIVED = 0.25
# Keep state of viewers from this number of exposures a viewer on.
COME_BACK = 1.5
DAY_MS = 86_400_000
SECTIONS = ATTRIBUTES, CONTEXT, CANDIDATE, VIEWER = (
    "Attributes.",
    "Context.",
    "Activity around the candidate.",
    "The viewer's affinity to such candidates.",
)


@dataclass(frozen=True)
class Feature:
    """Suggested feature: its spec as in the TOML, a comment, and the fields that it reads."""

    section: str
    name: str
    spec: Spec
    comment: str = ""
    fields: tuple[str, ...] = ()
    popular: bool = False


def toml(value: object) -> str:
    """Return a string, number, list or inline table as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(name: str) -> str:
    """Return a bare key if the name allows it, else a quoted one."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def suggest(
    columns: list[Column], tables: dict[str, pa.Table], events: Funnel
) -> tuple[list[Feature], list[Column]]:
    """Return the features, and the columns; those that no feature uses lose their type."""
    usable = [c for c in columns if c.type]
    own = (feature for c in usable for feature in _own(c, tables, events))
    found: dict[str, Feature] = {}
    for feature in (*own, *_pairs(usable), *_candidate(events), *_viewer(usable, events)):
        # Append a number to a name that is taken.
        names = (feature.name if i == 1 else f"{feature.name}_{i}" for i in itertools.count(1))
        free = next(name for name in names if name not in found)
        words = KINDS[str(feature.spec["kind"])].worded(feature.spec)
        found[free] = replace(feature, name=free, spec={**feature.spec, "describe": words})
    used = {name for feature in found.values() for name in feature.fields}
    columns = [_judged(c, used) for c in columns]
    return sorted(found.values(), key=lambda feature: SECTIONS.index(feature.section)), columns


def _judged(c: Column, used: set[str]) -> Column:
    """Return the column, without its type if no feature uses it, or with a remark if it is wide."""
    if c.type and c.path not in used:
        return replace(c, type=None, why=_useless(c))
    is_wide = c.distinct > {"category": MAX_CATEGORIES, "set": MAX_HOT}.get(c.type or "", c.distinct)
    return replace(c, why=", ".join(filter(None, (c.why, TOO_WIDE)))) if is_wide else c


def _useless(c: Column) -> str:
    if c.distinct <= 1:
        return "all its values are the same"
    if c.is_text:
        return c.why
    return f"{c.distinct:,} values are too many for a feature, and no other feature uses them"


def _own(c: Column, tables: dict[str, pa.Table], events: Funnel) -> Iterator[Feature]:
    """Yield the feature of a single column, if its type has one."""
    section = CONTEXT if c.owner == "context" else ATTRIBUTES
    name = f"viewer_{c.name}" if c.owner == "viewer" else c.name
    spec: Spec = {"field": c.path}
    if c.distinct <= 1 and c.type != "set":
        return
    if c.type == "time":
        age_s = np.maximum(ages_ms(c, tables, events), 0) / 1000
        spec = {"kind": "age", **spec, **_transform(age_s)}
        name = f"{name.removesuffix('_ms')}_age_s"
    elif c.type == "number":
        spec = {"kind": "number", **spec, **_transform(c.numbers)}
    elif c.type == "category" and c.distinct <= MAX_CATEGORIES and not c.is_text:
        spec = {"kind": "category", **spec}
    elif c.type == "set" and c.distinct <= MAX_HOT:
        spec = {"kind": "multi_category", **spec}
    else:
        return
    yield Feature(section, name, spec, fields=(c.path,))


def _transform(numbers: F64) -> Spec:
    """Return the transform `log1p` if it shortens a heavy tail."""
    given = numbers[np.isfinite(numbers)]
    if len(np.unique(given[:1000])) < 3 and len(np.unique(given)) < 3:
        return {}
    tamed = np.sign(given) * np.log1p(np.abs(given))
    before, after = abs(float(skew(given))), abs(float(skew(tamed)))
    return {"transform": "log1p"} if before > HEAVY_TAIL and after < before else {}


def _pairs(columns: list[Column]) -> Iterator[Feature]:
    """Yield `match` and `member` features of fields that viewers and candidates share."""
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
            spec: Spec = {"kind": kind, "viewer": v.path, "candidate": c.path}
            yield Feature(ATTRIBUTES, name, spec, f"they share {both:,} values", (v.path, c.path))


def _counted(events: Funnel) -> list[str]:
    """Return the four kinds to count: the label, then the most frequent ones.

    Leave out kinds that undo another one or follow no exposure.
    """
    able = [h for h in events.event_stats.values() if h.positives and h.kind != IMPRESSION]
    able = [h for h in able if h.kind == events.label or not h.why_not.startswith("undoes")]
    return [h.kind for h in sorted(able, key=lambda h: (h.kind != events.label, -h.num, h.kind))][:4]


def _prior(events: Funnel, kind: str, share: float = 1.0) -> Spec:
    """Return the prior of a rate: the base rate, weighted with `share` times 1/rate candidates."""
    rate = float(np.clip(float(f"{events.event_stats[kind].rate:.2g}"), 0.0001, 0.9999))
    return {"rate": rate, "weight": int(np.clip(round(share / rate), 5, 200))}


def _rate(entity: str, events: Funnel, kind: str, half: Spec) -> Spec:
    prior = _prior(events, kind)
    return {"kind": "rate", "entity": entity, "event": kind, "over": IMPRESSION, **half, "prior": prior}


def _count(entity: str, kind: str, half: Spec) -> Spec:
    return {"kind": "count", "entity": entity, "event": kind, **half, "transform": "log1p"}


def _candidate(events: Funnel) -> Iterator[Feature]:
    """Yield gauge, counts and rates of candidates; half-lives follow how long they are shown."""
    shown = pd.Series(events.shown_ms).groupby(events.candidate)
    come_back = shown.size().mean() >= 2
    lives_ms = (shown.max() - shown.min())[shown.size() > 1]
    life_ms = float(lives_ms.median()) if len(lives_ms) else 0.0
    is_short = 0 < life_ms < SHORT_LIVED * events.span_ms
    slow: Spec = {"half_life": duration(round_up_ms(life_ms))} if is_short else {}
    fast: Spec = {"half_life": duration(round_up_ms(life_ms / 5))} if is_short else {}
    why = "about the time that a candidate is shown" if is_short else "candidates stay, so nothing decays"
    why = why if come_back else "few candidates are shown twice, so this carries little information"
    if events.gauge:
        up, down = events.gauge
        spec: Spec = {"kind": "gauge", "entity": "candidate", "up": up, "down": down, "transform": "log1p"}
        yield Feature(CANDIDATE, f"{up}_now", spec, popular=True)
    for kind in _counted(events) if come_back else [events.label]:
        popular = kind == events.label and not events.gauge
        yield Feature(CANDIDATE, f"{kind}_rate", _rate("candidate", events, kind, slow), why, popular=popular)
        why = ""
    if come_back:
        why = "a fifth of that, to follow a candidate's rise and fall" if is_short else ""
        for kind in (*_counted(events)[:2], IMPRESSION):
            name = f"recent_{kind}" if is_short else f"num_{kind}"
            yield Feature(CANDIDATE, name, _count("candidate", kind, fast), why)
            why = ""


def _viewer(columns: list[Column], events: Funnel) -> Iterator[Feature]:
    """Yield counts, rates and affinities of viewers, if viewers come back."""
    known = events.viewer[events.viewer > 0]
    if len(known) < COME_BACK * max(len(np.unique(known)), 1):
        return
    half_ms = int(np.clip(round_up_ms(events.span_ms), 7 * DAY_MS, 90 * DAY_MS))
    half: Spec = {"half_life": duration(half_ms)}
    label, before = events.label, _counted(events)[1:2]
    why = "the span of the log, but 7 to 90 days"
    yield Feature(VIEWER, f"viewer_{label}_rate", _rate("viewer", events, label, half), why)
    for kind in (label, IMPRESSION):
        yield Feature(VIEWER, f"viewer_num_{kind}", _count("viewer", kind, half))
    for c in columns:
        # An event on a candidate does not know what a request stated of it.
        is_known = c.owner == "candidate" and c.type in ("category", "set") and not c.request_time
        if not is_known or c.distinct < 2 or c.is_text:
            continue
        keep = min(c.distinct, WIDE_AFFINITY * (2 if c.type == "set" else 1))
        why = f"keeps {keep} of {c.distinct:,}" if keep < c.distinct else ""
        # With few values, a more frequent kind of event shows taste sooner than a rare label.
        for kind in [label, *before] if c.distinct <= WIDE_AFFINITY else [label]:
            prior = _prior(events, kind, 0.5)
            spec: Spec = {"kind": "affinity", "event": kind, "over": IMPRESSION, "field": c.path}
            spec |= {**half, "prior": prior, "keep": keep}
            yield Feature(VIEWER, f"{c.name}_{kind}_affinity", spec, why, (c.path,))
