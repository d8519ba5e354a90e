"""Parquet files: who opens them, and what is read of them at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pyarrow as pa

from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.small_surface import TOML, tables

ROOT = Path(__file__).parents[3]
# In the checkout, these read files of their own.
OWN = (
    "training/data/flat_file.py",
    "loadtest/targets/workspace.py",
    "loadtest/scenarios/topic_story.py",
    "loadtest/generator/ids.py",
)


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
