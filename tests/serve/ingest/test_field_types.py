"""A field of a log keeps its type: a change is refused before anything is written.

Each owner of fields has one for each change of type, such as `viewer.number_to_set`. The fields
`asked_…` are candidates' fields that requests state.
"""

from __future__ import annotations

import asyncio
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from serve.config.reader import read
from serve.config.settings import AppArgs
from serve.config.yaml_positions import ConfigRefused
from serve.contract.errors import StoreUnavailable
from serve.contract.records import Candidate, Viewer
from serve.features.field_types import TYPES
from serve.features.surface import read_surface
from serve.ingest.backfill import load
from serve.ingest.writer import Ingester
from serve.log import type_ledger
from serve.log.events import Exposure, pack
from serve.log.lease import read_lease, types_of
from serve.log.reader import read_log
from serve.log.type_ledger import checked_types, fields_of
from serve.log.writer import write_log
from tests.support.small_surface import TOML, tables

CHANGES = {f"{old}_to_{new}": (old, new) for old, new in permutations(TYPES, 2)}
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
    for name in SOME:
        with pytest.raises(StoreUnavailable, match=name):
            checked_types(home.log, surface({name}))


def test_a_ledger_without_end_is_refused(home, monkeypatch):
    monkeypatch.setattr(type_ledger, "MAX_BYTES", 100)
    with pytest.raises(StoreUnavailable, match="exceed 100 bytes; begin a new log"):
        checked_types(home.log, TOML)
