from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from serve.storage.atomic_files import swap


@pytest.fixture
def folders(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "new", tmp_path / "old"


def test_a_reader_finds_one_of_two_folders_that_are_swapped(folders):
    draft, folder = folders
    found, ends = set(), threading.Event()

    def read():
        while not ends.is_set():
            found.add((folder / "file").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1_000_000):
        swap(draft, folder)
        if number >= 200 and number % 2 == 0 and len(found) == 2:
            break
    ends.set()
    reader.join()
    assert found == {"old", "new"}
    assert ((folder / "file").read_text(), (draft / "file").read_text()) == ("new", "old")


def test_folders_are_swapped_where_the_file_system_cannot_exchange_them(folders, monkeypatch):
    libc = SimpleNamespace(renameat2=lambda *arguments: -1)
    monkeypatch.setattr("serve.storage.atomic_files.ctypes.CDLL", lambda name: libc)
    draft, folder = folders
    swap(draft, folder)
    assert ((folder / "file").read_text(), (draft / "file").read_text()) == ("new", "old")
    assert len(list(folder.parent.iterdir())) == 2
