from __future__ import annotations

import errno
import os

import numpy as np
import psutil
import pytest

from serve.contract.errors import TabrankError
from training.data import scratch


def test_a_large_array_takes_no_memory_of_the_process():
    before = psutil.Process().memory_full_info()
    array = scratch.empty((64 << 20,), np.uint8)
    array[:] = 7
    after = psutil.Process().memory_full_info()
    assert array.sum(dtype=np.int64) == 7 * len(array)
    # All of it is resident, and none of it is the process's own.
    assert (after.rss - after.shared) - (before.rss - before.shared) < 16 << 20


def test_no_file_is_left_in_the_folder_of_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    array = scratch.empty((3, scratch.LEAST_BYTES), np.uint8)
    array[2] = 1
    assert os.listdir(tmp_path) == []
    assert array[1:].sum(dtype=np.int64) == scratch.LEAST_BYTES


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch.os, "posix_fallocate", full)
    with pytest.raises(TabrankError, match=f"{tmp_path}: cannot create a file of .*No space left.*TMPDIR"):
        scratch.empty((scratch.LEAST_BYTES,), np.uint8)
    assert len(scratch.empty((10,), np.uint8)) == 10


def test_rows_are_taken_by_number(monkeypatch):
    monkeypatch.setattr(scratch, "LEAST_BYTES", 1)
    monkeypatch.setattr(scratch, "ROWS_AT_ONCE", 7)
    array = np.random.default_rng(0).random((50, 3))
    rows = np.array([4, 4, 49, 0, *range(30)])
    np.testing.assert_array_equal(scratch.taken(array, rows), array[rows])
    assert scratch.taken(array, rows[:0]).shape == (0, 3)
    for mask in (array[:, 0] > 0.5, np.arange(50) == 9):
        np.testing.assert_array_equal(scratch.taken(array, mask), array[mask])
