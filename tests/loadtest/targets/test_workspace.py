"""Tests of the workspace, with fake commands."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from loadtest.errors import LoadtestError
from loadtest.targets.workspace import ROWS, STORE_FORMAT, VIEWERS, Workspace
from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_CANDIDATES
from serve.stores.lmdb_environment import FORMAT


class Commands:
    """Fake commands that make a folder for every --out, --models and --store, and candidates."""

    def __init__(self, fail=None, num_live=300):
        self.fail, self.num_live = fail, num_live
        self.names = []

    def __call__(self, package, *arguments, log):
        self.names.append(f"{package} {arguments[0]}")
        if arguments[0] == self.fail:
            raise LoadtestError(f"python -m {package} {arguments[0]} failed")
        for option, value in pairwise(arguments):
            if option in ("--out", "--models", "--store"):
                Path(value.removeprefix("lmdb:")).mkdir()
            if (option, arguments[0]) == ("--out", "simulate"):
                self.write_candidates(Path(value) / "candidates.parquet")

    def write_candidates(self, file, num=1_500):
        ids = [f"s{i}" for i in range(num)]
        ends = range(num, 2 * num - self.num_live)
        ends_ms = pa.array([None] * num + list(ends), pa.int64())
        ts_ms = [*range(num), *ends]
        pq.write_table(pa.table({"id": ids + ids[: len(ends)], "ts_ms": ts_ms, "ends_ms": ends_ms}), file)


@pytest.fixture
def work(tmp_path):
    workspace = Workspace(tmp_path / "bench")
    with workspace.locked():
        yield workspace


def test_what_is_missing_is_made_and_said(work):
    commands, lines = Commands(), []
    work.prepare(lines.append, commands)
    assert commands.names == ["training simulate", "training fit", "training publish", "serve load"]
    assert sorted(path.name for path in work.data.iterdir()) == ["log", "model", "models", "store"]
    assert f"{VIEWERS:,} viewers" in lines[0]
    assert str(ROWS) in work.data.name


@pytest.mark.parametrize("num_live", [300, 1_400])
def test_the_largest_request_finds_enough_live_candidates(work, num_live):
    work.prepare(lambda line: None, Commands(num_live=num_live))
    rows = pq.read_table(work.log / "candidates.parquet")
    ended = rows.filter(rows["ends_ms"].is_valid())
    assert len(pc.unique(rows["id"])) - len(ended) == max(num_live, MAX_CANDIDATES)
    assert ended["id"].to_pylist() == [f"s{i}" for i in range(len(ended))]


def test_what_is_there_is_used_again(work):
    work.prepare(lambda line: None, Commands())
    commands, lines = Commands(), []
    work.prepare(lines.append, commands)
    assert commands.names == []
    assert str(work.data) in lines[0]


def test_a_store_of_a_format_before_is_made_anew(work, monkeypatch):
    monkeypatch.setattr("loadtest.targets.workspace.STORE_FORMAT", "1")
    work.prepare(lambda line: None, Commands())
    monkeypatch.undo()
    commands = Commands()
    work.prepare(lambda line: None, commands)
    assert "serve load" in commands.names
    assert STORE_FORMAT.encode() == FORMAT


@pytest.mark.parametrize("command", ["simulate", "fit", "publish", "load"])
def test_what_is_half_made_is_made_anew(work, command):
    with pytest.raises(LoadtestError):
        work.prepare(lambda line: None, Commands(fail=command))
    assert not work.data.exists()
    commands = Commands()
    work.prepare(lambda line: None, commands)
    assert len(commands.names) == 4
    assert [path.name for path in work.path.iterdir() if path.is_dir()] == [work.data.name]


def test_what_else_lies_in_the_folder_stays(work):
    (work.path / "log").mkdir()
    work.prepare(lambda line: None, Commands())
    assert (work.path / "log").is_dir()


def test_two_benchmarks_do_not_share_a_folder(work):
    with pytest.raises(TabrankError, match="another benchmark uses it"), work.locked():
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TabrankError, match="cannot be written to"), Workspace(tmp_path / "file").locked():
        pass
