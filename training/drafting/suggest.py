"""Suggest the features of a surface from the columns and events of a log."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import skew

from serve.contract.validation import duration, spelled
from serve.features.registry import KINDS
from serve.features.slots import F64, IMPRESSION
from training.drafting.evidence import label_gap, remembered, share_of_viewers, told_by_others
from training.drafting.funnel import Funnel, round_up_ms
from training.drafting.leakage import ages_ms
from training.drafting.profile import Column
from training.evaluation.foresight import SUSPECT_AUC

Spec = dict[str, object]
# A column with more values than this becomes no category feature, because most of its values would
# be too rare to learn. Other features, such as affinities, can still use it.
MAX_CATEGORIES = 1_000
# The same limit for a set, of which each value becomes a column of 0 and 1.
MAX_HOT = 100
TOO_WIDE = "too many for a feature of their own; the features that compare or count them use them"
# A viewer's affinity keeps this many values of a category, and twice as many of a set.
WIDE_AFFINITY = 64
# Two fields mean the same if they share this part of the smaller set of values.
SHARED = 0.5
# With at least 100 ids, 10 % in common are enough: this many cannot be chance, and a log may hold
# only few of the ids that are live.
MANY_IDS, SHARED_IDS = 100, 0.1
# A number gets the transform log1p if its skewness exceeds this.
HEAVY_TAIL = 2.0
# Candidates are short-lived if they are shown for less than this share of the log's span.
SHORT_LIVED = 0.25
# Events are counted at a category only if at least this many candidates share a value, on average.
SHARED_BY = 2
# A category says something about new candidates from this AUC on (see `told_by_others`). Rates are
# suggested at this many categories at most.
TELLING, MAX_TELLING = 0.52, 2
# Features of what a viewer was shown before are suggested if this share of the rows shows one of
# the viewer's last 64 candidates again. The state remembers that many.
AGAIN, REMEMBERED = 0.05, 64
# Label events come in bursts if half of them follow the previous one within this share of their
# mean distance. If events come at random, half do so within 0.69 of it.
BURST = 0.35
# Features with state of viewers are suggested from this mean number of exposures per viewer on.
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
    """A suggested feature: its spec, as in the TOML, a comment, and the fields that it reads."""

    section: str
    name: str
    spec: Spec
    comment: str = ""
    fields: tuple[str, ...] = ()
    popular: bool = False


def toml(value: object) -> str:
    """Return a string, a number, a list of these or an inline table as one line of TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(name: str) -> str:
    """Return the name as a TOML key, in quotes if it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, or if it is taken, the name with a number: join, join_2, join_3."""
    names = (name if i == 1 else f"{name}_{i}" for i in itertools.count(1))
    return next(each for each in names if each not in taken)


def suggest(
    columns: list[Column], tables: dict[str, pa.Table], events: Funnel
) -> tuple[list[Feature], list[Column]]:
    """Return the suggested features, and the columns; a column that no feature uses has no type."""
    usable = [c for c in columns if c.type]
    # When an event arrives, the fields that a request stated are unknown, so nothing can be counted
    # by them.
    stored = [c for c in usable if c.owner == "candidate" and c.distinct >= 2 and not c.request_time]
    own = (feature for c in usable for feature in _own(c, tables, events))
    found: dict[str, Feature] = {}
    candidates = (*_candidate(tables, events), *_values(stored, tables, events))
    viewers = (*_viewer(stored, events), *_shown_before(events), *_friends(usable, tables, events))
    for feature in (*own, *_pairs(usable), *candidates, *viewers):
        free = free_name(feature.name, found)
        words = KINDS[str(feature.spec["kind"])].worded(feature.spec)
        found[free] = replace(feature, name=free, spec={**feature.spec, "describe": words})
    used = {name for feature in found.values() for name in feature.fields}
    columns = [_judged(c, used) for c in columns]
    return sorted(found.values(), key=lambda feature: SECTIONS.index(feature.section)), columns


def _judged(c: Column, used: set[str]) -> Column:
    """Return the column without a type if no feature uses it; add a remark if it is wide."""
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
    """Return the transform `log1p` if it shortens a heavy tail, else nothing."""
    given = numbers[np.isfinite(numbers)]
    if len(np.unique(given[:1000])) < 3 and len(np.unique(given)) < 3:
        return {}
    tamed = np.sign(given) * np.log1p(np.abs(given))
    before, after = abs(float(skew(given))), abs(float(skew(tamed)))
    return {"transform": "log1p"} if before > HEAVY_TAIL and after < before else {}


def _pairs(columns: list[Column]) -> Iterator[Feature]:
    """Yield the features `match`, `member` and `overlap` of fields that have values in common."""
    theirs = [c for c in columns if c.owner == "candidate" and c.type in ("category", "set")]
    for v in (c for c in columns if c.owner == "viewer"):
        # There is no kind of feature that looks for a viewer's category in a candidate's set.
        for c in (c for c in theirs if v.type == "set" or c.type == "category"):
            both = len(v.values & c.values)
            fewer = min(len(v.values), len(c.values))
            if both < 2 or both < fewer * (SHARED if fewer < MANY_IDS else SHARED_IDS):
                continue
            kind, name = "member", f"{c.name}_in_{v.name}"
            if v.type == "category":
                kind, name = "match", f"same_{c.name}" if c.name == v.name else f"{v.name}_is_{c.name}"
            if c.type == "set":
                kind, name = "overlap", f"shared_{c.name}"
            spec: Spec = {"kind": kind, "viewer": v.path, "candidate": c.path}
            yield Feature(ATTRIBUTES, name, spec, f"they share {both:,} values", (v.path, c.path))


def _counted(events: Funnel) -> list[str]:
    """Return up to four kinds of event to count: the label, then the most frequent ones.

    Kinds that undo another one, that follow no exposure or that are too rare are left out.
    """
    return [h.kind for h in events.responses if events.is_counted(h)][:4]


def _prior(events: Funnel, kind: str, share: float = 1.0) -> Spec:
    """Return the prior of a rate: the base rate, with the weight of `share` / rate impressions.

    For example, with a base rate of 2 % the prior weighs as much as 50 impressions, in which one
    event is expected. The weight is kept between 5 and 200.
    """
    rate = float(np.clip(float(f"{events.event_stats[kind].rate:.2g}"), 0.0001, 0.9999))
    return {"rate": rate, "weight": int(np.clip(round(share / rate), 5, 200))}


def _rate(entity: str, events: Funnel, kind: str, half: Spec) -> Spec:
    prior = _prior(events, kind)
    return {"kind": "rate", "entity": entity, "event": kind, "over": IMPRESSION, **half, "prior": prior}


def _tamed(kind: str, entity: str | list[str], event: str, half: Spec | None = None) -> Spec:
    return {"kind": kind, "entity": entity, "event": event, **(half or {}), "transform": "log1p"}


def _shown_for_ms(events: Funnel) -> float:
    """Return the median time from a candidate's first impression to its last one, in ms."""
    shown = pd.Series(events.shown_ms).groupby(events.candidate)
    lives_ms = (shown.max() - shown.min())[shown.size() > 1]
    return float(lives_ms.median()) if len(lives_ms) else 0.0


def _life_ms(events: Funnel) -> float:
    """Return for how long the median candidate is shown, in ms; 0 if candidates are long-lived."""
    life_ms = _shown_for_ms(events)
    return life_ms if life_ms < SHORT_LIVED * events.span_ms else 0.0


def _half(life_ms: float) -> Spec:
    return {"half_life": duration(round_up_ms(life_ms))} if life_ms else {}


def _long_half(events: Funnel) -> Spec:
    """Return the half-life for state of viewers and categories: the log's span, in 7 to 90 days."""
    return _half(float(np.clip(events.span_ms, 7 * DAY_MS, 90 * DAY_MS)))


def _candidate(tables: dict[str, pa.Table], events: Funnel) -> Iterator[Feature]:
    """Yield the gauge, rates, counts and recency of candidates.

    Their half-lives follow from how long candidates are shown.
    """
    life_ms, label = _life_ms(events), events.label
    come_back = len(events.candidate) >= 2 * len(np.unique(events.candidate))
    why = f"{spelled(_shown_for_ms(events) / 1000)} from the median candidate's first impression to its last"
    why += "" if life_ms else f", at least {SHORT_LIVED:.0%} of the log: candidates stay, so nothing decays"
    why = why if come_back else "few candidates are shown twice, so this carries little information"
    if events.gauge:
        up, down = events.gauge
        spec: Spec = {"kind": "gauge", "entity": "candidate", "up": up, "down": down, "transform": "log1p"}
        yield Feature(CANDIDATE, f"{up}_now", spec, popular=True)
    for kind in _counted(events) if come_back else [label]:
        spec = _rate("candidate", events, kind, _half(life_ms))
        yield Feature(CANDIDATE, f"{kind}_rate", spec, why, popular=kind == label and not events.gauge)
        why = ""
    if not come_back:
        return
    why = "a fifth of that, to follow a candidate's rise and fall" if life_ms else ""
    for kind in (*_counted(events)[:2], IMPRESSION):
        name = f"recent_{kind}" if life_ms else f"num_{kind}"
        yield Feature(CANDIDATE, name, _tamed("count", "candidate", kind, _half(life_ms / 5)), why)
        why = ""
    gap_ms, share = label_gap(tables, events)
    if share < (np.inf if life_ms else BURST):
        why = f"half of a candidate's {label} events come within {spelled(gap_ms / 1000)} of the one before"
        yield Feature(CANDIDATE, f"since_{label}", _tamed("recency", "candidate", label), why)


def _values(columns: list[Column], tables: dict[str, pa.Table], events: Funnel) -> list[Feature]:
    """Return rates at the categories that say most about candidates without events of their own.

    `columns` are the candidates' stored fields.
    """
    num, told = len(pc.unique(tables["candidates"]["id"])), []
    for c in (c for c in columns if c.type == "category"):
        sharing = num * (1 - c.missing) / c.distinct
        auc = told_by_others(c, tables, events) if sharing >= SHARED_BY else 0.5
        # A category that predicts almost perfectly was probably written after the ranking.
        if TELLING <= auc < SUSPECT_AUC:
            spec = _rate(c.path, events, events.label, _long_half(events))
            why = f"{sharing:,.1f} candidates share a value; their rate without its own has AUC {auc:.2f}"
            told.append((auc, Feature(CANDIDATE, f"{c.name}_{events.label}_rate", spec, why, (c.path,))))
    told.sort(key=lambda pair: -pair[0])
    # Long-lived candidates soon have events of their own, so one such rate is enough for them.
    return [feature for _, feature in told[: MAX_TELLING if _life_ms(events) else 1]]


def _shown_before(events: Funnel) -> Iterator[Feature]:
    """Yield how often, and how long ago, a viewer was shown this very candidate."""
    share = remembered(events, REMEMBERED)
    if share >= AGAIN:
        pair = ["viewer", "candidate"]
        why = f"{share:.0%} of the rows show one of the viewer's last {REMEMBERED} candidates again"
        # Neither has a half-life, so that both read the same state.
        yield Feature(VIEWER, "shown_before", _tamed("count", pair, IMPRESSION), why)
        yield Feature(VIEWER, "since_shown", _tamed("recency", pair, IMPRESSION))


def _friends(columns: list[Column], tables: dict[str, pa.Table], events: Funnel) -> Iterator[Feature]:
    """Yield how many of a viewer's friends are at the candidate, if a set holds ids of viewers."""
    if events.gauge is None:
        return
    up, down = events.gauge
    for c in (c for c in columns if c.owner == "viewer" and c.type == "set"):
        share = share_of_viewers(c, tables)
        if share >= (SHARED if c.distinct < MANY_IDS else SHARED_IDS):
            spec: Spec = {"kind": "friends", "viewer": c.path, "up": up, "down": down}
            why = f"{share:.0%} of its values are ids of viewers"
            yield Feature(VIEWER, "friends_inside", spec, why, (c.path,))


def _viewer(columns: list[Column], events: Funnel) -> Iterator[Feature]:
    """Yield counts, rates and affinities of viewers, if viewers come back.

    `columns` are the candidates' stored fields.
    """
    known = events.viewer[events.viewer > 0]
    if len(known) < COME_BACK * max(len(np.unique(known)), 1):
        return
    half, label, before = _long_half(events), events.label, _counted(events)[1:2]
    why = "the span of the log, but 7 to 90 days"
    yield Feature(VIEWER, f"viewer_{label}_rate", _rate("viewer", events, label, half), why)
    for kind in (label, IMPRESSION):
        yield Feature(VIEWER, f"viewer_num_{kind}", _tamed("count", "viewer", kind, half))
    for c in (c for c in columns if c.type in ("category", "set") and not c.is_text):
        keep = min(c.distinct, WIDE_AFFINITY * (2 if c.type == "set" else 1))
        why = f"keeps {keep} of {c.distinct:,}" if keep < c.distinct else ""
        # With few values, a more frequent kind of event shows taste sooner than a rare label.
        for kind in [label, *before] if c.distinct <= WIDE_AFFINITY else [label]:
            prior = _prior(events, kind, 0.5)
            spec: Spec = {"kind": "affinity", "event": kind, "over": IMPRESSION, "field": c.path}
            spec |= {**half, "prior": prior, "keep": keep}
            yield Feature(VIEWER, f"{c.name}_{kind}_affinity", spec, why, (c.path,))
