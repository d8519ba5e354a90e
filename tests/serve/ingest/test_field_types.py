"""A field of a log keeps its type: a change is refused before anything is written.

Each owner of fields has one for each change of type, such as `viewer.number_to_set`. The fields
`asked_…` are candidates' fields that requests state.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from serve.config.reader import read
from serve.config.settings import AppArgs
from serve.config.yaml_positions import ConfigRefused
from serve.contract.errors import StoreUnavailable
from serve.contract.records import Candidate, Viewer
from serve.features.surface import read_surface
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log import field_types
from serve.log.events import Exposure, JournalEntry, pack
from serve.log.field_types import ARROW, checked_types, fields_of
from serve.log.lease import read_lease, swap_lease, types_of
from serve.log.reader import TABLES, read_columns, read_log
from serve.log.segments import Segments, log_end
from serve.log.stream import LogStream
from serve.log.writer import write_log
from tests.support.small_surface import TOML, tables

CHANGES = {f"{old}_to_{new}": (old, new) for old, new in permutations(ARROW, 2)}
VALUES = {"number": 2.0, "category": "x", "set": ["x", "y"], "time": 1_700_000_000_000}
SHIPPED = yaml.safe_load((Path(__file__).parents[3] / "cluster.yaml").read_text())


def surface(new=frozenset()):
    """Return the small surface with all fields of CHANGES; those in `new` have changed."""
    text = TOML
    for owner, prefix in (("viewer", ""), ("candidate", ""), ("candidate", "asked_"), ("context", "")):
        lines = ""
        for change, types in CHANGES.items():
            name = f"{prefix}{change}"
            type_ = types[f"{owner}.{name}" in new]
            lines += f'{name} = {{ type = "{type_}"{", request_time = true" if prefix else ""} }}\n'
        text = text.replace(f"[{owner}]\n", f"[{owner}]\n{lines}", 1)
    return text


FIELDS = sorted(name for name in fields_of(surface()) if "_to_" in name)
# All changes of one owner's fields, and one change of each other's.
SOME = [name for name in FIELDS if name.startswith("viewer.") or name.endswith("number_to_set")]
BEFORE, AFTER = surface(), surface(frozenset(FIELDS))


def records(text, i):
    """Return a record of each owner, with a value of each field."""
    values = {owner: {} for owner in types_of(text)}
    for owner, fields in types_of(text).items():
        values[owner] = {name: VALUES[type_] for name, type_ in fields.items() if "_to_" in name}
    stated = {name: value for name, value in values["candidate"].items() if name.startswith("asked_")}
    stored = {name: value for name, value in values["candidate"].items() if name not in stated}
    scores = np.zeros(2, np.float32).tobytes()
    shown = f"x{i}", int(time.time() * 1e3), f"v{i}", ["a", "b"], scores, "launch", "model", "full", 0
    return [
        Viewer(f"v{i}", values["viewer"]),
        Candidate(f"c{i}", stored),
        Exposure(*shown, context=values["context"], stated={"a": stated}),
    ]


class Home:
    """Folder of a service of the small surface."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        # Columns of nothing but nulls, of which a file tells no type.
        imported = tables()
        for owner in ("viewer", "candidate"):
            for change in CHANGES:
                rows = imported[f"{owner}s"]
                imported[f"{owner}s"] = rows.append_column(change, pa.nulls(len(rows)))
        write_log(self.log, imported)
        app = SHIPPED["applications"][0] | {"name": "tiny"}
        args = {"surface": "surface.toml", "store": "lmdb:store", "models": "models", "log": "log"}
        document = SHIPPED | {"applications": [app | {"args": args}]}
        (folder / "cluster.yaml").write_text(yaml.safe_dump(document))

    def writer(self, text, store="lmdb:store"):
        (self.folder / "surface.toml").write_text(text)
        return Ingester(AppArgs("surface.toml", store, "models", "log", keep_log_days=0), self.folder)

    def load(self, text, store="lmdb:store"):
        return load(read_surface(text), self.log, store, self.folder)

    def check(self):
        return read(self.folder / "cluster.yaml")

    def files(self):
        """Return the content of each file but LMDB's locks, which readers write too."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and "lock" not in path.name]
        return {path: path.read_bytes() for path in paths if path.name != "surface.toml"}


async def sent(writer, these):
    taking = asyncio.ensure_future(writer.take(these, len(pack(these))))
    await asyncio.sleep(0)
    await writer.commit_waiting()
    return await taking


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture
def mixed(home):
    """A log of an earlier release, without a ledger, whose service changed the types of fields."""

    async def serve():
        writer = home.writer(BEFORE)
        await sent(writer, records(BEFORE, 1))
        await writer.finish()

    home.load(BEFORE)
    asyncio.run(serve())
    held, end = read_lease(home.log), log_end(home.log)
    for i in range(2):
        these = records(AFTER, 2 + i)
        end += len(these)
        Segments(home.log, types_of(AFTER), held.epoch).write(
            [(end, JournalEntry(int(time.time() * 1e3), these))]
        )
    assert swap_lease(home.log, held, replace(held, surface=AFTER, types=None, end=end))
    return home


def test_a_changed_type_is_refused_before_anything_is_written(home):
    async def refuse():
        writer = home.writer(BEFORE)
        await sent(writer, records(BEFORE, 1))
        home.check()
        before = home.files()
        for name in SOME:
            text, (old, new) = surface({name}), CHANGES[name.partition(".")[2].removeprefix("asked_")]
            words = rf"{name} is {old} in the log .*log, but {new} in the surface; give the field a new name"
            with pytest.raises(StoreUnavailable, match=words):
                await sent(home.writer(text), records(text, 2))
            with pytest.raises(StoreUnavailable, match=words):
                home.load(text, "lmdb:other")
            with pytest.raises(
                ConfigRefused,
                match=rf"cluster.yaml:\d+:\d+: .*args.surface: .*{name} is {old} in the log .*log, but {new} in",
            ):
                home.check()
            assert home.files() == before, name
        # The writer was not fenced.
        await sent(writer, records(BEFORE, 3))
        await writer.finish()

    home.load(BEFORE)
    asyncio.run(refuse())
    assert len(read_log(home.log, read_surface(BEFORE)).exposures) == 5


def test_a_field_that_was_removed_comes_back_with_its_type_alone(home):
    async def take_over(text):
        home.load(text, "lmdb:other")
        writer = home.writer(text, "lmdb:other")
        await sent(writer, [Viewer("v9", {})])
        await writer.finish()

    # Members kept of a set are no type. No file tells of a field without a value.
    for text in (BEFORE, TOML, TOML, BEFORE.replace('{ type = "set" }', '{ type = "set", max = 3 }')):
        asyncio.run(take_over(text))
        assert fields_of(BEFORE).items() == read_lease(home.log).types.items()
    # An earlier release writes a lease without a ledger, whose journal may have what no file has.
    for ledger in (fields_of(BEFORE), None):
        held = read_lease(home.log)
        assert swap_lease(home.log, held, replace(held, types=ledger))
        for name in SOME:
            with pytest.raises(StoreUnavailable, match=name):
                checked_types(home.log, surface({name}))


def test_a_column_of_an_import_keeps_its_type_before_anybody_serves_it(tmp_path):
    imported = tables()
    at = imported["exposures"].column_names.index("context")
    hours = pa.StructArray.from_arrays([pa.array([1, 2, 3])], ["hour"])
    imported["exposures"] = imported["exposures"].set_column(at, "context", hours)
    imported["viewers"] = imported["viewers"].append_column("nothing", pa.nulls(2))
    write_log(tmp_path / "log", imported)
    assert "viewer.nothing" not in checked_types(tmp_path / "log", TOML)
    for type_ in ("number", "time"):
        ledger = checked_types(tmp_path / "log", TOML.replace('hour = "number"', f'hour = "{type_}"'))
        assert ledger["context.hour"] == [type_]
    for type_ in ("category", "set"):
        with pytest.raises(StoreUnavailable, match="hour is number and time"):
            checked_types(tmp_path / "log", TOML.replace('hour = "number"', f'hour = "{type_}"'))


@pytest.mark.parametrize(("text", "ids", "num"), [(BEFORE, [1], 2), (AFTER, [2, 3], 1)], ids=["old", "new"])
def test_in_a_mixed_log_values_of_another_type_are_missing_and_counted(mixed, text, ids, num, caplog):
    ids_of = {
        "viewer": ("viewers", "id", "v"),
        "candidate": ("candidates", "id", "c"),
        "context": ("exposures", "request_id", "x"),
    }

    def check(log):
        for owner, (table, column, letter) in ids_of.items():
            rows = getattr(log, table)
            rows = rows.filter(pc.match_substring_regex(rows[column], f"^{letter}[123]$")).to_pylist()
            assert [row[column] for row in rows] == [f"{letter}{i}" for i in (1, 2, 3)]
            for i, row in enumerate(rows, 1):
                expected = {
                    name: VALUES[type_] if i in ids else None
                    for name, type_ in types_of(text)[owner].items()
                    if "_to_" in name
                }
                asked = {name: expected.pop(name) for name in list(expected) if name.startswith("asked_")}
                held = row["context"] if owner == "context" else row
                assert {name: held[name] for name in expected} == expected
                if owner == "context":
                    asked = {
                        n: VALUES[t] if i in ids else None
                        for n, t in types_of(text)["candidate"].items()
                        if n.startswith("asked_")
                    }
                    found = json.loads(row["stated"])["a"]
                    assert found == asked
                    assert all(type(found[name]) is type(asked[name]) for name in asked)
        warned = [one.getMessage() for one in caplog.records if "another type" in one.getMessage()]
        caplog.clear()
        for name in FIELDS:
            assert sum(f"{num} of {name}" in line for line in warned) == 1, name
        return warned

    caplog.set_level(logging.WARNING)
    chosen = read_surface(text)
    assert len(check(read_log(mixed.log, chosen))) == 1
    parts = list(LogStream(mixed.log, chosen))
    merged = {name: pa.concat_tables([getattr(part, name) for part in parts]) for name in TABLES}
    check(replace(parts[0], **merged))
    mixed.load(text, "lmdb:again")
    read_columns(mixed.log)


def test_a_mixed_log_is_served_on_by_either_surface(mixed):
    async def serve(text, store, i):
        writer = mixed.writer(text, store)
        await sent(writer, records(text, i))
        await writer.finish()

    for i, text in enumerate((AFTER, BEFORE), 4):
        mixed.load(text, f"lmdb:{i}")
        asyncio.run(serve(text, f"lmdb:{i}", i))
        types = read_lease(mixed.log).types
        assert {tuple(types[name]) for name in FIELDS} == set(permutations(ARROW, 2))
        assert len(read_log(mixed.log, read_surface(text)).exposures) == 3 + i


def test_a_ledger_without_end_is_refused(home, monkeypatch):
    monkeypatch.setattr(field_types, "MAX_BYTES", 100)
    with pytest.raises(StoreUnavailable, match="exceed 100 bytes; begin a new log"):
        checked_types(home.log, TOML)
