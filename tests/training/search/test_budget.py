from __future__ import annotations

import fcntl

import pytest

from serve.contract.errors import TabrankError
from training.search.budget import Clock


def claimed(out, identity="rows", *, budget_s=60.0, restart=False) -> None:
    """Claim the folder and stop, as a search that is killed then."""
    with Clock(out, budget_s) as clock:
        clock.claim(identity, restart=restart)


def test_a_search_goes_on_with_what_is_left_of_its_budget(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.search.budget.time.monotonic", lambda: now[0])
    with Clock(tmp_path / "out", 60.0) as clock:
        clock.claim("rows", restart=False)
        now[0] = 130.0
        clock.save(over=False)
    # The search was killed and called again later.
    now[0] = 500.0
    with Clock(tmp_path / "out", 60.0) as again:
        again.claim("rows", restart=False)
        now[0] = 510.0
        assert again.spent() == 40.0
        assert again.left() == 20.0
        assert again.running() == 10.0


def test_another_searchs_folder_is_refused(tmp_path):
    claimed(tmp_path / "out")
    with pytest.raises(TabrankError, match=r"out: holds a search over another log.*name another folder"):
        claimed(tmp_path / "out", "other rows")


def test_a_second_search_in_a_folder_is_refused_while_the_first_runs(tmp_path):
    with Clock(tmp_path / "out", 60.0) as first:
        with pytest.raises(TabrankError, match="out: a search runs there already"):
            Clock(tmp_path / "out", 60.0)
        # The folder may be replaced; the lock stays.
        first.claim("rows", restart=True)
        with pytest.raises(TabrankError, match="runs there already"):
            Clock(tmp_path / "out", 60.0)
    claimed(tmp_path / "out")


def test_a_lock_that_the_search_before_has_just_removed_is_not_taken(tmp_path, monkeypatch):
    lock, flock = tmp_path / ".out.lock", fcntl.flock

    def as_the_other_ends(file, how):
        lock.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", as_the_other_ends)
    with pytest.raises(TabrankError, match="a search runs there already"):
        Clock(tmp_path / "out", 60.0)


def test_a_folder_that_holds_no_search_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    # A refused call releases the lock.
    for _ in range(2):
        with pytest.raises(TabrankError, match="holds no search"):
            Clock(tmp_path / "precious", 60.0)
    assert (tmp_path / "precious" / "file").exists()


def test_a_file_in_place_of_the_folder_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/out"):
        with pytest.raises(TabrankError, match="file is a file; name another folder"):
            Clock(tmp_path / out, 60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_refresh_begins_anew_after_one_that_is_over_or_was_of_other_rows(tmp_path):
    out = tmp_path / "out"
    claimed(out, restart=True)
    (out / "left").touch()
    claimed(out, restart=True)
    # A killed search resumes.
    assert (out / "left").exists()
    with Clock(out, 60.0) as clock:
        clock.claim("newer rows", restart=True)
        assert not (out / "left").exists()
        (out / "left").touch()
        clock.save(over=True)
    claimed(out, "newer rows", restart=True)
    assert not (out / "left").exists()


def test_what_the_first_call_chose_stays_whatever_budget_comes_later(tmp_path):
    for budget_s, wanted in ((60.0, 50_000), (600.0, 300_000)):
        with Clock(tmp_path / "out", budget_s) as clock:
            clock.claim("rows", restart=False)
            assert clock.setdefault("trial_rows", wanted) == 50_000


def test_that_there_was_nothing_at_first_is_kept_too(tmp_path):
    for version in (None, "20261125-000000-000000"):
        with Clock(tmp_path / "out", 60.0) as clock:
            clock.claim("rows", restart=False)
            assert clock.setdefault("follows", version) is None


def test_looks_are_counted_over_all_calls(tmp_path):
    for number in (1, 2):
        with Clock(tmp_path / "out", 60.0) as clock:
            clock.claim("rows", restart=False)
            assert clock.increment("test_looks") == number
            assert clock.setdefault("test_looks", 0) == number


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "out").mkdir()
    claimed(tmp_path / "out")
