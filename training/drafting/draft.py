"""Draft a surface: write its TOML from a log, with a comment that says why for each choice."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.rankings import MAX_CANDIDATES
from serve.features.rows import Schema
from serve.features.slots import IMPRESSION, OWNERS
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from training.data.dataset import Dataset, build
from training.data.doubts import doubts
from training.drafting.funnel import Funnel, funnel
from training.drafting.leakage import without_leaks
from training.drafting.outcomes import DraftedOutcome, draft_outcomes
from training.drafting.profile import Column, conversions, profile, read_tables
from training.drafting.suggest import TOO_WIDE, Feature, suggest, toml, toml_key
from training.evaluation.foresight import questions, suspects
from training.evaluation.verdict import span

POPULAR = {"gauge": "current number", "rate": "no pair of event kinds gives a current number"}
# Leaking fields are searched on about this many rows, so that a draft takes seconds.
PROBE_ROWS = 100_000


@dataclass(frozen=True)
class Draft:
    """A drafted surface as TOML, to be reviewed before use.

    `notes` say what was converted, and what was left out and why. `request` ranks the log's newest
    large slate; it is the body of a `POST /v1/rank`. `is_joined` is False if many events or shown
    candidates have ids of which the log holds no record.
    """

    text: str
    notes: tuple[str, ...]
    request: dict[str, Any]
    is_joined: bool


def draft(log: Path, name: str | None = None) -> Draft:
    """Draft the surface of a log. It is called `name`, or by default like the log's folder.

    Each choice has its reason in a comment. Fields that seem to be written after the ranking are
    left out: copies of the outcome (found by `foresight.suspects` on a sample of the log), totals
    over the whole log, columns to ask about (`foresight.questions`), and times after the ranking.

    Raises:
        TabrankError: the log is invalid or holds nothing to learn from. The message names the table
            and the column.
    """
    tables, is_joined = read_tables(log)
    events = funnel(tables)
    columns = without_leaks(profile(tables), tables, events)
    features, columns = suggest(columns, tables, events)
    pairs = {f.name for f in features if len(f.fields) == 2}
    popular = next(f for f in features if f.popular)
    head = _head(name or _name(log), log, events, draft_outcomes(tables, events), popular)
    data = _probe(log, _text(head, columns, features), features)
    found = {
        s.feature: f"looks like the outcome itself, which no ranking can know ({s.sign} alone has AUC {s.auc:.3f})"
        for s in suspects(data)
        if s.feature != popular.name
    }
    leaky = {f.fields[0]: found[f.name] for f in features if f.name in found and len(f.fields) == 1}
    for one in questions(data, read_surface(_text(head, columns, features))):
        leaky.setdefault(
            one.column,
            f"it {one.why}; if it is known before a list is shown, declare it with known_before = true",
        )
    columns = [replace(c, type=None, why=leaky[c.path]) if c.path in leaky else c for c in columns]
    features = [f for f in features if f.name not in found and not leaky.keys() & set(f.fields)]
    text = _text(head, columns, features) + _rule(data, features, popular.name)
    surface = read_surface(text, f"draft of {log}")
    notes = conversions(tables)
    notes += [f"{c.path} is left out: {c.why}" for c in columns if c.type is None]
    notes += [f"{c.path}: {c.distinct:,} values are {TOO_WIDE}" for c in columns if TOO_WIDE in c.why]
    notes += [f"{c.path} {c.why}" for c in columns if c.why.endswith("for a time")]
    notes += [f"the feature {f} is left out: {why}" for f, why in found.items() if f in pairs]
    positives = {events.label: events.event_stats[events.label].positives}
    notes += doubts(tables["exposures"], positives, {c.path: c.missing for c in columns if c.type})
    return Draft(text, tuple(notes), _request(surface, tables["exposures"]), is_joined)


def _request(surface: Surface, exposures: pa.Table) -> dict[str, Any]:
    """Return a request for the newest of the largest slates, where the order matters most."""
    sizes = pc.list_value_length(exposures["candidates"]).fill_null(0).to_numpy()
    place = np.lexsort((exposures["ts_ms"], np.minimum(sizes, MAX_CANDIDATES)))[-1]
    (full,) = exposures.slice(place, 1).to_pylist()
    context = {k: v for k, v in (full.get("context") or {}).items() if k in surface.context and v is not None}
    allowed = surface.stated
    stated = json.loads(full.get("stated") or "{}") if allowed else {}
    candidates = [
        {"candidate": n, "fields": {k: v for k, v in stated[n].items() if k in allowed}} if n in stated else n
        for n in full["candidates"][:MAX_CANDIDATES]
    ]
    request = {"viewer": full["viewer"], "candidates": candidates, "limit": 10}
    return request | ({"context": context} if context else {}) | {"explain": "reasons", "traffic": "test"}


def _probe(log: Path, text: str, features: list[Feature]) -> Dataset:
    """Return a dataset of sampled exposures with the stateless features and the primary outcome."""
    surface = read_surface(text)
    read = {f.name for f in features if f.fields and not surface.features[f.name].slots}
    stateless = read | {surface.popular}
    kept = {name: kind for name, kind in surface.features.items() if name in stateless}
    schema = Schema(replace(surface, features=kept))
    table = read_log(log, surface)
    step = max(1, len(pc.list_flatten(table.exposures["candidates"])) // PROBE_ROWS)
    wanted = pa.array(sorted({surface.primary.event, IMPRESSION}))
    probe = replace(
        table,
        # Snapshots hold state, which the probed features do not use.
        snapshots=(),
        exposures=table.exposures.take(np.arange(0, len(table.exposures), step)),
        events=table.events.filter(pc.is_in(table.events["kind"], wanted)),
    )
    return build(schema, probe)


def _rule(data: Dataset, features: list[Feature], popular: str) -> str:
    """Return the table `[baseline]`, a rule that sorts by match features and then by popularity.

    It uses the features of the kinds `match` and `member` with which the outcome is more frequent:
    the rate where the feature is 1 must exceed the rate where it is 0 by two standard errors of a
    difference of proportions. The text is empty if no feature does that.
    """
    rates = []
    for name in (f.name for f in features if f.spec["kind"] in ("match", "member")):
        values = data.matrix.numeric[:, data.columns.numeric.index(name)]
        ones, zeros = (data.label[values == value] for value in (1, 0))
        if len(ones) and len(zeros):
            error = data.label.std() * np.sqrt(1 / len(ones) + 1 / len(zeros))
            rates += [(ones.mean(), name, zeros.mean())] if ones.mean() > zeros.mean() + 2 * error else []
    rates.sort(reverse=True)
    lines = [f"# {_plain(name)}: {one:.1%} where it is 1, else {zero:.1%}" for one, name, zero in rates]
    head = ["", "# A rule to compare the model with: what raises the outcome's rate, then popularity."]
    rule = ["[baseline]", f"sort = {toml([*(name for _, name, _ in rates), popular])}", ""]
    return "\n".join([*head, *lines, *rule]) if rates else ""


def _head(
    name: str, log: Path, events: Funnel, outcomes: list[DraftedOutcome], popular: Feature
) -> list[str]:
    """Return the lines above the fields: names, the kinds of event, outcomes and weights."""
    when = span(int(events.shown_ms.min()), int(events.shown_ms.max()))
    num_exposures, num_rows = len(events.viewer), len(events.exposure)
    declared = sorted(events.event_stats.values(), key=lambda h: (-h.num, h.kind))
    others = [h for h in declared if h not in events.responses]
    bad = ", ".join(one.name for one in outcomes if "bad" in one.spec) or "none"
    primary, *more = outcomes
    return [
        f"# Drafted from the log {json.dumps(log.name, ensure_ascii=False)}:",
        f"# {num_exposures:,} exposures of {num_rows:,} candidates, {when}.",
        "# This is a draft. Review it: are the outcomes right, and is each field known before a ranking?",
        f"name = {json.dumps(name)}",
        f"events = {toml([h.kind for h in declared])}",
        f"popular = {toml(popular.name)}  # {POPULAR[str(popular.spec['kind'])]}",
        "",
        "# What may follow when a candidate is shown. The first is the primary one, by which models are",
        f"# judged. Here it is {events.label_reason}.",
        "# Put first what matters most to you, and give that the weight 1.",
        "[outcomes]",
        *(f"{o.name} = {toml(o.spec)}{_comment(_plain(o.why))}" for o in outcomes),
        *(f"# {_plain(h.kind)} is no outcome: it {h.why_not} ({h.num:,} events)" for h in others),
        "",
        f"# Check which outcomes are bad, so that fewer are better. Marked with bad = true: {bad}.",
        "# A weight says what one unit of an outcome (an event, a minute, 1 of a sum) is worth compared",
        "# with the primary one. Outcomes with a weight are predicted. The others are only measured.",
        "[weights]",
        f"{primary.name} = 1",
        *(f"# {o.name} = {float(f'{o.weight:.2g}'):g}{_comment(_plain(o.worth))}" for o in more),
    ]


def _text(head: list[str], columns: list[Column], features: list[Feature]) -> str:
    lines = [*head]
    for owner in OWNERS:
        own = [c for c in columns if c.owner == owner]
        if not own and owner != "candidate":
            continue
        lines += ["", f"[{owner}]", *(_field(c) for c in own)]
    lines += ["", "[features]"]
    parts = [
        [f"# {section}", *(f"{toml_key(f.name)} = {toml(f.spec)}{_comment(f.comment)}" for f in own)]
        for section, own in itertools.groupby(features, key=lambda f: f.section)
    ]
    return "\n".join([*lines, "\n\n".join(map("\n".join, parts))]) + "\n"


def _name(log: Path) -> str:
    """Return the folder's name, reduced to the characters that a surface's name may have."""
    name = re.sub(r"[^a-z0-9_-]+", "-", log.resolve().name.lower())
    return name.lstrip("-_0123456789")[:64].rstrip("-_") or "drafted"


def _plain(text: str) -> str:
    """Return the text on one line without control characters, so that a comment can hold it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _field(c: Column) -> str:
    if c.type is None:
        return f"# {_plain(c.name)} is left out: {c.why}"
    remarks = [f"{c.distinct:,} values"] if c.type in ("category", "set") else []
    remarks += [f"{c.missing:.0%} missing"] if c.missing >= 0.005 else []
    remarks += [c.why] if c.why else []
    more = {"max": c.max_size} if c.type == "set" else {}
    more |= {"request_time": True} if c.request_time else {}
    spec: object = {"type": c.type, **more} if more else c.type
    return f"{toml_key(c.name)} = {toml(spec)}{_comment(', '.join(remarks))}"


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""
