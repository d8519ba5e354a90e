from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from serve.contract.errors import TabrankError
from serve.features.matrix import Columns, Matrix
from serve.features.surface import Surface, read_surface
from serve.log.writer import write_log
from tests.support.point_in_time import shown_ids
from tests.support.small_surface import THREE, TOML, tables
from training.data.dataset import Dataset
from training.fit import prepare as preparing
from training.fit.prepare import prepare, split_by_time

REPEATS = 40


@pytest.fixture
def long_log(tmp_path):
    """Repeat the small log to 320 rows."""
    parts = tables()
    values = pa.array([3.0, None, None, None, None], pa.float64())
    parts["events"] = parts["events"].append_column("value", values)
    for name in ("exposures", "events"):
        again = []
        for number in range(REPEATS):
            table = parts[name]
            later = pa.array(table["ts_ms"].to_numpy() + number * 100_000)
            table = table.set_column(table.column_names.index("ts_ms"), "ts_ms", later)
            for column in {"id", "request_id"} & set(table.column_names):
                names = [None if n is None else f"{n}-{number}" for n in table[column].to_pylist()]
                table = table.set_column(
                    table.column_names.index(column), column, pa.array(names, pa.string())
                )
            again.append(table)
        parts[name] = pa.concat_tables(again)
    write_log(tmp_path / "long", parts)
    return tmp_path / "long"


@pytest.fixture(params=[TOML, THREE], ids=["one outcome", "three outcomes"])
def surface(request):
    """Return a small surface."""
    return read_surface(request.param)


@pytest.fixture
def in_files(monkeypatch):
    """Keep every array in a file, and compute 50 rows at once."""
    monkeypatch.setattr("training.data.scratch.LEAST_BYTES", 1)
    monkeypatch.setattr("training.data.scratch.ROWS_AT_ONCE", 50)


def test_rows_in_files_are_those_that_are_in_memory(long_log, surface, request):
    memory = prepare(surface, long_log)
    request.getfixturevalue("in_files")
    disk = prepare(surface, long_log)
    assert disk.encoder == memory.encoder
    assert disk.examinations == memory.examinations
    for name in ("x", "label", "examination"):
        np.testing.assert_array_equal(getattr(disk.train, name), getattr(memory.train, name))
    for ours, theirs in ((disk.valid, memory.valid), (disk.rows, memory.rows)):
        assert shown_ids(ours) == shown_ids(theirs)
        for name, array in theirs.arrays().items():
            np.testing.assert_array_equal(getattr(ours, name), array)
        np.testing.assert_array_equal(ours.matrix.numeric, theirs.matrix.numeric)
        np.testing.assert_array_equal(ours.matrix.category, theirs.matrix.category)


def test_validation_rows_beyond_the_bound_are_thinned_out_by_whole_slates(long_log, surface, monkeypatch):
    valid = prepare(surface, long_log).valid
    slates = dict(zip(*np.unique(valid.slate, return_counts=True), strict=True))
    monkeypatch.setattr(preparing, "MAX_VALIDATION", len(valid) // 2)
    kept = dict(zip(*np.unique(prepare(surface, long_log).valid.slate, return_counts=True), strict=True))
    assert 0 < len(kept) <= (len(slates) + 1) // 2
    assert all(slates[slate] == count for slate, count in kept.items())
    assert min(kept) == min(slates)
    assert max(kept) > max(slates) - 3


def test_a_log_with_one_label_only_is_refused(surface, tmp_path):
    parts = tables()
    kinds = pa.array(["click", "click", "click", "click", "leave"])
    parts["events"] = parts["events"].set_column(4, "kind", kinds)
    write_log(tmp_path / "log", parts)
    with pytest.raises(TabrankError, match=r"of the outcome 'join'.* and 0 of them have it"):
        prepare(surface, tmp_path / "log")


def windows(*within: str) -> Surface:
    """Return a surface with an outcome for each window."""
    outcomes = "".join(
        f'outcomes.o{i} = {{ event = "join", within = "{time}" }}\n' for i, time in enumerate(within)
    )
    weights = ", ".join(f"o{i} = 1" for i in range(len(within)))
    join = 'outcomes.join = { event = "join", within = "10s" }\n'
    return read_surface(TOML.replace(join, f"{outcomes}weights = {{ {weights} }}\n"))


def test_an_outcome_whose_window_reaches_into_the_next_part_is_left_out_of_its_rows():
    ts_ms = np.arange(100) * 1_000
    zeros = np.zeros(100, np.int64)
    data = Dataset(
        columns=Columns(("a",), (), ()),
        matrix=Matrix(np.zeros((100, 1), np.float32), np.zeros((100, 0), np.uint64)),
        outcomes=np.repeat(np.arange(100) % 2, 2).reshape(100, 2).astype(np.float32),
        slate=np.arange(100),
        viewer=zeros,
        shown=zeros,
        ts_ms=ts_ms,
        popular=np.zeros(100, np.float32),
        position=zeros,
        viewer_seen=zeros,
        candidate_seen=zeros,
        request_ids=[],
        candidate_ids=[],
    )
    shares = {"training": 0.8, "validation": 0.2}
    early, late = split_by_time(data, shares, windows("5s", "20s"))
    assert late.ts_ms.tolist() == ts_ms[79:].tolist()
    # A window includes its end, so that of the row at 74 s reaches the row at 79 s.
    assert early.ts_ms[-1] == early.of(0).ts_ms[-1] == 73_000
    assert early.of(1).ts_ms[-1] == 58_000
    assert [len(late.of(k)) for k in (0, 1)] == [21, 21]
    (alone, _) = split_by_time(data.of(0), shares, windows("5s"))
    assert alone.ts_ms.tolist() == early.of(0).ts_ms.tolist()


def test_an_outcome_that_never_happens_is_refused_by_name(long_log):
    surface = read_surface(THREE.replace('event = "click"', 'event = "leave"'))
    with pytest.raises(TabrankError, match=r"of the outcome 'spend'.* and 0 of them have it"):
        prepare(surface, long_log)
