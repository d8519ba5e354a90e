"""Random options of any feature kind, by its declaration, and random records to compute it on."""

from __future__ import annotations

import json
from functools import cache
from itertools import product

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from serve.contract.records import Candidate, Event, Forget, Viewer
from serve.contract.typed_reader import Invalid, json_schema, read
from serve.features.registry import KINDS
from serve.features.surface import read_surface
from serve.log.events import Ended, Exposure

EVENTS = ("click", "join", "leave")
FIELDS = {
    "language": "category",
    "host": "category",
    "topics": {"type": "set", "max": 3},
    "price": "number",
    "born_ms": "time",
}
ARROW = {
    "language": pa.string(),
    "host": pa.string(),
    "topics": pa.list_(pa.string()),
    "price": pa.float64(),
    "born_ms": pa.int64(),
}
OWNERS = ("viewer", "candidate", "context")
VIEWERS, CANDIDATES = [f"v{i}" for i in range(4)], [f"c{i}" for i in range(5)]
START_MS = 1_800_000_000_000
# Durations that are shorter and longer than the time of all records.
DURATIONS = ["10s", "2m", "1h"]


def surface_of(**features):
    """Return a surface with the features of these names and options, and one named `always`."""
    lines = [f"{name} = {toml(options)}" for name, options in features.items()]
    declared = [f"{name} = {toml(each)}" for name, each in FIELDS.items()]
    sections = ["\n".join([f"[{owner}]", *declared]) for owner in OWNERS]
    head = (
        f'name = "drawn"\nevents = {json.dumps(EVENTS)}\npopular = "always"\n'
        'outcomes.join = { event = "join", within = "10s" }'
    )
    always = 'always = { kind = "number", field = "candidate.price" }'
    return read_surface("\n".join([head, *sections, "[features]", always, *lines]))


def toml(value):
    """Return a value of a surface as TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@cache
def options_of(kind):
    """Return the values that each option of a kind may have in `surface_of`.

    None stands for the default.
    """
    parts = {"events": EVENTS, **surface_of().fields}
    schema = json_schema(KINDS[kind])
    found = {}
    for name, declared in schema["properties"].items():
        if name in ("describe", "unit"):
            continue
        values = [value for value in _values(declared, schema) if _is_valid(kind, name, value, parts)]
        assert values, f"no value for the option {name!r} of the kind {kind!r}: draw its type in {__file__}"
        found[name] = values if name in schema["required"] else [None, *values]
    return found


def _values(declared, schema):
    """Return values to try for a property of a JSON Schema."""
    if "$ref" in declared:
        model = schema["$defs"][declared["$ref"].rpartition("/")[2]]
        each = {name: _values(part, schema) for name, part in model["properties"].items()}
        return [dict(zip(each, values, strict=True)) for values in product(*each.values())]
    if "anyOf" in declared:
        return [v for part in declared["anyOf"] if part.get("type") != "null" for v in _values(part, schema)]
    if "enum" in declared:
        return declared["enum"]
    if declared["type"] == "array":
        return [["viewer", "candidate"], ["candidate", "viewer"]]
    if declared["type"] in ("integer", "number"):
        low, high = declared.get("minimum", 0), declared.get("maximum", 10)
        return [low, 3 if low <= 3 <= high else (low + high) / 2]
    if declared["type"] == "boolean":
        return [False, True]
    if "pattern" in declared:
        return DURATIONS
    return [*EVENTS, "impression", *OWNERS, *(f"{owner}.{name}" for owner in OWNERS for name in FIELDS)]


def _is_valid(kind, option, value, parts):
    try:
        read(KINDS[kind], {option: value}, "", context=parts)
    except Invalid as error:
        return all(option not in problem.steps[:1] for problem in error.problems)
    return True


def features_of(kind):
    """Return a strategy that draws the options of a feature of this kind."""
    drawn = st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in options_of(kind).items()}
    )
    return drawn.map(
        lambda options: {"kind": kind, **{k: v for k, v in options.items() if _is_stated(k, v, options)}}
    )


def _is_stated(option, value, options):
    """Return whether to state an option. Some belong only to a pair of viewer and candidate."""
    is_of_pairs = option == "keep" and "entity" in options
    return value is not None and not (is_of_pairs and isinstance(options["entity"], str))


def drawn_fields(rng):
    """Return some fields of a viewer, a candidate or a context."""
    values = {
        "language": ["en", "fr", None],
        "host": ["hal", "ida", "joe", None],
        "topics": [["jazz"], ["jazz", "news", "en"], VIEWERS[1:], ["v0", "jazz"], [], None],
        "price": [0.0, 2.5, -1.0, None],
        "born_ms": [START_MS - 60_000, START_MS + 200_000, None],
    }
    return {name: each[rng.integers(len(each))] for name, each in values.items() if rng.random() < 0.7}


def drawn_records(seed, num):
    """Return random records in the order in which a service takes them.

    Some are late, and some are of unknown viewers or candidates.
    """
    rng = np.random.default_rng(seed)
    # If there are few changes of fields, there are runs of exposures and events, which the state
    # applies at once.
    change = rng.choice([0.02, 0.2])
    now_ms, records = START_MS, [Viewer(VIEWERS[0], drawn_fields(rng), START_MS)]
    records += [Candidate(name, drawn_fields(rng), START_MS) for name in CANDIDATES[:3]]
    for i in range(num):
        now_ms += int(rng.integers(0, 15_000))
        ts_ms = now_ms - int(rng.integers(0, 40_000)) * (rng.random() < 0.2)
        viewer = [*VIEWERS, None][rng.integers(len(VIEWERS) + 1)]
        candidate = CANDIDATES[rng.integers(len(CANDIDATES))]
        shown = rng.permutation([*CANDIDATES, "unknown"])[: rng.integers(0, 5)].tolist()
        kind = EVENTS[rng.integers(len(EVENTS))]
        # Some exposures stand for others that were not logged.
        one_in = int(rng.choice([1, 1, 2, 5]))
        if rng.random() < change:
            made = [
                Candidate(candidate, drawn_fields(rng), ts_ms),
                Viewer(viewer or "v0", drawn_fields(rng), ts_ms),
                Forget(viewer or "v0", now_ms),
                Ended(candidate, now_ms),
            ]
        else:
            made = [
                Exposure(f"r{i}", now_ms, viewer, shown, b"", None, "model", "full", 0, one_in=one_in),
                Event(f"e{i}", viewer, candidate, kind, ts_ms),
            ]
        records.append(made[rng.integers(len(made))])
    return records, now_ms


def log_tables(records):
    """Return the tables of a log with these records, which are numbered in this order."""
    numbered = list(enumerate(records, start=1))
    made = {}
    for table, kept, gone in (("viewers", Viewer, Forget), ("candidates", Candidate, Ended)):
        rows = [
            {
                "id": record.viewer if isinstance(record, Forget) else record.id,
                "ts_ms": record.ts_ms,
                "seq": seq,
                "removed": isinstance(record, gone),
                "stated": list(getattr(record, "fields", {})),
                **getattr(record, "fields", {}),
            }
            for seq, record in numbered
            if isinstance(record, kept | gone)
        ]
        types = {"id": pa.string(), "ts_ms": pa.int64(), "seq": pa.int64(), "removed": pa.bool_()}
        made[table] = pa.Table.from_pylist(
            rows, pa.schema({**types, "stated": pa.list_(pa.string()), **ARROW})
        )
    exposures = [
        {
            "request_id": r.request_id,
            "ts_ms": r.ts_ms,
            "viewer": r.viewer,
            "candidates": r.candidates,
            "seq": seq,
            "one_in": r.one_in,
        }
        for seq, r in numbered
        if isinstance(r, Exposure)
    ]
    events = [
        {
            "id": r.id,
            "ts_ms": r.ts_ms,
            "viewer": r.viewer,
            "candidate": r.candidate,
            "kind": r.kind,
            "seq": seq,
        }
        for seq, r in numbered
        if isinstance(r, Event)
    ]
    text, whole = pa.string(), pa.int64()
    of_exposure = {
        "request_id": text,
        "ts_ms": whole,
        "viewer": text,
        "candidates": pa.list_(text),
        "seq": whole,
        "one_in": whole,
    }
    of_event = {"id": text, "ts_ms": whole, "viewer": text, "candidate": text, "kind": text, "seq": whole}
    made["exposures"] = pa.Table.from_pylist(exposures, pa.schema(of_exposure))
    made["events"] = pa.Table.from_pylist(events, pa.schema(of_event))
    return made
