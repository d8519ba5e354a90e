from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from serve.contract.errors import TabrankError
from serve.features.matrix import Columns, Matrix
from serve.features.surface import Surface, read_surface
from serve.log.writer import write_log
from tests.support.point_in_time import shown_ids
from tests.support.small_surface import THREE, TOML, tables
from training.data import stream as spilling
from training.data.dataset import Dataset
from training.data.stream import Spill, Streamed
from training.fit import prepare as preparing
from training.fit.prepare import prepare, split_by_time
from training.network.network import Inputs

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
def small_parts(monkeypatch):
    monkeypatch.setattr(preparing, "ROWS_PER_PART", 50)
    monkeypatch.setattr(spilling, "ROWS_PER_FILE", 64)


def sorted_rows(x, label, examination):
    rows = np.column_stack([x, label, examination])
    return rows[np.lexsort(rows.T)]


def batches(train: Streamed, size: int, begin: int, end: int, seed: int) -> Inputs:
    """Return the batches of a pass end to end."""
    parts = [vars(batch).values() for batch in train.batches(size, slice(begin, end), seed)]
    assert all(len(x) == end - begin for x, _, _ in parts)
    return Inputs(*map(torch.cat, zip(*parts, strict=True)))


def test_spilled_rows_are_those_that_would_be_in_memory(long_log, surface, tmp_path, small_parts):
    with prepare(surface, long_log, tmp_path, memory_bytes=1 << 30) as memory:
        assert not isinstance(memory.train, Streamed)
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as disk:
        assert isinstance(disk.train, Streamed)
        assert len(disk.train.sizes) > 3
        assert len(disk.train) == len(memory.train)
        assert disk.train.shape[1] == len(surface.predicted)
        assert disk.encoder == memory.encoder
        ready = memory.train
        given = batches(disk.train, 1, 0, 1, seed=5)
        np.testing.assert_array_equal(
            sorted_rows(given.x, given.label, given.examination),
            sorted_rows(ready.x, ready.label, ready.examination),
        )
        assert shown_ids(disk.valid) == shown_ids(memory.valid)
        assert disk.valid.ts_ms.tolist() == memory.valid.ts_ms.tolist()
        np.testing.assert_array_equal(disk.valid.outcomes, memory.valid.outcomes)
        np.testing.assert_array_equal(disk.valid.matrix.numeric, memory.valid.matrix.numeric)
        folder = disk.train.folder
    assert not folder.exists()


def test_validation_rows_beyond_the_bound_are_thinned_out_by_whole_slates(
    long_log, surface, tmp_path, small_parts, monkeypatch
):
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as all_of_them:
        slates = dict(zip(*np.unique(all_of_them.valid.slate, return_counts=True), strict=True))
        num_rows = len(all_of_them.valid)
    monkeypatch.setattr(preparing, "MAX_VALIDATION", num_rows // 2)
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as thinned:
        kept = dict(zip(*np.unique(thinned.valid.slate, return_counts=True), strict=True))
    assert 0 < len(kept) <= (len(slates) + 1) // 2
    assert all(slates[slate] == count for slate, count in kept.items())
    assert min(kept) == min(slates)
    assert max(kept) > max(slates) - 3


def test_the_encoder_of_a_spilled_log_is_fitted_to_a_sample(
    long_log, surface, tmp_path, small_parts, monkeypatch
):
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as whole:
        pass
    monkeypatch.setattr(preparing, "MAX_SAMPLE", len(whole.train) // 2)
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as sampled:
        mean = {column.name: column.mean for column in sampled.encoder.numeric}
    assert sampled.encoder != whole.encoder
    for column in whole.encoder.numeric:
        assert mean[column.name] == pytest.approx(column.mean, abs=0.25 * column.std)


def test_what_a_killed_fit_left_is_removed(long_log, surface, tmp_path, small_parts):
    (tmp_path / "rows" / "inputs").mkdir(parents=True)
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as prepared:
        first = prepared.train.digest
    with prepare(surface, long_log, tmp_path, memory_bytes=1) as prepared:
        assert prepared.train.digest == first


def test_a_log_with_one_label_only_is_refused(surface, tmp_path):
    parts = tables()
    kinds = pa.array(["click", "click", "click", "click", "leave"])
    parts["events"] = parts["events"].set_column(4, "kind", kinds)
    write_log(tmp_path / "log", parts)
    for memory_bytes in (1, 1 << 30):
        with (
            pytest.raises(TabrankError, match=r"of the outcome 'join'.* and 0 of them have it"),
            prepare(surface, tmp_path / "log", tmp_path, memory_bytes=memory_bytes),
        ):
            pass


@pytest.fixture
def streamed(tmp_path, monkeypatch) -> Streamed:
    """Write 1,000 rows to 16 files, each row's number in its one input and as its examination."""
    monkeypatch.setattr(spilling, "ROWS_PER_FILE", 64)
    spill = Spill(tmp_path / "spill", 1_000, 1, 1)
    for part in np.split(np.arange(1_000), [300, 301, 900]):
        x = part[:, None].astype(np.float32)
        spill.add(Inputs(*map(torch.from_numpy, (x, x % 2, x))))
    return spill.streamed()


def test_files_hold_a_random_share_of_all_rows(streamed):
    assert streamed.sizes == (63,) * 8 + (62,) * 8
    for file in streamed.files(0):
        rows = streamed.read(*file, 1, slice(0, 1), 0)
        assert 350 < rows["examination"].mean() < 650
        assert (rows["x"] == rows["examination"]).all()
        assert (rows["label"] == rows["examination"] % 2).all()


def test_a_pass_gives_whole_batches_in_an_order_of_its_own(streamed):
    first, again, other = (batches(streamed, 96, 0, 96, seed) for seed in (1, 1, 2))
    assert len(first) == len(other) == 960
    orders = [rows.examination[:, 0].tolist() for rows in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 960
    assert set(orders[0]) != set(orders[2])


def test_ranks_share_the_batches_that_one_process_would_have(streamed):
    alone = batches(streamed, 96, 0, 96, seed=3).examination.reshape(10, 96)
    ranks = [
        batches(streamed, 96, 32 * r, 32 * (r + 1), seed=3).examination.reshape(10, 32) for r in range(3)
    ]
    assert torch.cat(ranks, dim=1).tolist() == alone.tolist()


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


def test_an_outcome_that_never_happens_is_refused_by_name(long_log, tmp_path, small_parts):
    surface = read_surface(THREE.replace('event = "click"', 'event = "leave"'))
    for memory_bytes in (1, 1 << 30):
        with (
            pytest.raises(TabrankError, match=r"of the outcome 'spend'.* and 0 of them have it"),
            prepare(surface, long_log, tmp_path, memory_bytes=memory_bytes),
        ):
            pass
