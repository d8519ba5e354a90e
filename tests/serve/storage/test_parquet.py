"""Files in which few bytes stand for very many: every reader of a log refuses or bounds them."""

from __future__ import annotations

import ast
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.__main__ import app as serve
from serve.features.surface import read_surface
from serve.log import compaction, stream
from serve.log.lease import types_of
from serve.log.reader import read_log
from serve.log.segments import Segments
from serve.log.writer import write_log
from serve.storage import parquet
from serve.storage.parquet import bounded_batches
from tests.support.small_surface import TOML, tables
from training.__main__ import app as training

ROOT = Path(__file__).parents[3]
# In the checkout, these may read files in their own way: of their own, or after `refuse_oversize`.
OWN = (
    "training/data/flat.py",
    "loadtest/targets/workspace.py",
    "loadtest/scenarios/topic_story.py",
    # Each file of the data set goes through `open_parquet` first.
    "loadtest/generator/ids.py",
)


def repeated(table, column, value, kind):
    """Return the table with a value in its first row that is null, or short, in the others."""
    values = pa.array([value] + [None] * (len(table) - 1), kind)
    return table.set_column(table.column_names.index(column), column, values)


def bomb(folder, name, column, value, kind):
    """Write the small log, with a value in a row of a table that has a hundred thousandth of it."""
    made = tables()
    made[name] = repeated(made[name], column, value, kind)
    write_log(folder / "log", made)
    (folder / "tiny.toml").write_text(TOML)
    (folder / "viewers").write_text('"ann"\n')
    path = folder / "log" / f"{name}.parquet"
    assert path.stat().st_size < 10_000
    return path


BOMBS = {
    "candidates": ("exposures", "candidates", ["c"] * 1_000_000, pa.list_(pa.string())),
    "topic": ("candidates", "topic", "x" * (16 << 20), pa.string()),
}
COMMANDS = (
    (serve, "load --surface tiny.toml --log log --store lmdb:store"),
    (training, "surface --log log --out mine.toml"),
    (training, "forget --log log --viewers viewers"),
    (training, "split --log log --before a --after b"),
    (
        training,
        "import csv --source log/{table}.parquet --out other --candidate {column} --time ts_ms --event ts_ms",
    ),
)


# `forget` reads no candidates.
CASES = [
    (*one, column) for one in COMMANDS for column in BOMBS if (one[1][:6], column) != ("forget", "topic")
]


@pytest.mark.parametrize(
    ("app", "command", "column"), CASES, ids=[words.split(" --")[0] for _, words, _ in CASES]
)
def test_few_bytes_that_stand_for_many_are_refused_by_every_reader(
    tmp_path, monkeypatch, app, command, column
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parquet, "FREE_BYTES", 1 << 20)
    path = bomb(tmp_path, *BOMBS[column])
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    done = CliRunner().invoke(app, command.format(table=path.stem, column=column).split())
    pa.set_memory_pool(before)
    assert done.exit_code == 2, done.output
    assert f"{path.relative_to(tmp_path)}: column '{column}" in done.stderr
    assert "row group 0" in done.stderr
    assert "the limit is" in done.stderr
    assert pool.max_memory() < 1 << 20


@pytest.mark.parametrize("column", BOMBS)
def test_to_the_writer_such_a_segment_is_damaged(tmp_path, monkeypatch, column):
    name, *rest = BOMBS[column]
    path = bomb(tmp_path, name, *rest)
    monkeypatch.setattr(parquet, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(compaction, "MIN_SEGMENTS", 2)
    folder = tmp_path / "served" / name
    folder.mkdir(parents=True)
    table = pq.read_table(path)
    numbers = {"seq": pa.array(range(1, len(table) + 1)), "received_ms": pa.array([1] * len(table))}
    numbers["removed"] = pa.array([False] * len(table))
    table = pa.table(dict(zip(table.column_names, table.columns, strict=True)) | numbers)
    names = [f"{first:020d}-{first:020d}-{0:010d}.parquet" for first in (1, 2)]
    pq.write_table(table, folder / names[0], compression="zstd")
    few = table.set_column(table.column_names.index(rest[0]), rest[0], pa.nulls(len(table), rest[2]))
    pq.write_table(few, folder / names[1])
    served = Segments(tmp_path / "served", types_of(TOML))
    served.recent_keys(10**6)
    served.removals(0)
    assert served.damaged == {folder / names[0]}
    served.damaged.clear()
    compaction.compact(served)
    assert served.damaged == {folder / names[0]}
    assert sorted(file.name for file in folder.glob("*")) == names


@pytest.mark.parametrize("nulls", [0, 5_000])
def test_a_long_string_that_repeats_is_read_a_few_rows_at_a_time(tmp_path, nulls):
    # 240 MB in 100 kB.
    texts = pa.array([None] * nulls + ["x" * 40_000, "y"] * 6_000)
    table = pa.table({"id": [f"c{i}" for i in range(len(texts))], "topic": texts, "ts_ms": [1] * len(texts)})
    path = tmp_path / "candidates.parquet"
    pq.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 200_000
    lens = []
    for batches, most in (
        (bounded_batches(path), 64 << 20),
        ((rows for _, rows in stream._batches(path, "candidates", table.column_names)), 16 << 20),
    ):
        lens.append(0)
        for batch in batches:
            assert batch.nbytes < 1.1 * most
            lens[-1] += len(batch)
    assert lens == [len(table)] * 2


def test_a_log_that_repeats_itself_and_one_of_long_strings_are_read(tmp_path):
    made = tables()
    again = made["exposures"].take([0] * 50_000)
    ids = pa.array([f"r{i}" for i in range(len(again))])
    made["exposures"] = again.set_column(0, "request_id", ids)
    made["candidates"] = made["candidates"].set_column(
        made["candidates"].column_names.index("topic"),
        "topic",
        pa.array(["x" * 1_000_000] * len(made["candidates"])),
    )
    write_log(tmp_path / "log", made)
    assert len(read_log(tmp_path / "log", read_surface(TOML)).exposures) == 50_000


def test_nothing_else_opens_the_files_of_a_log():
    openers = {"ParquetFile", "read_table", "dataset", "read_pandas", "ParquetDataset"}
    found = set()
    for folder in ("serve", "training", "loadtest"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                if (
                    is_call
                    and node.func.attr in openers
                    and getattr(node.func.value, "id", "") in ("pq", "ds")
                ):
                    found.add(str(path.relative_to(ROOT)))
    assert found == {"serve/storage/parquet.py", *OWN}
