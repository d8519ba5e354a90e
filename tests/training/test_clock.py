from __future__ import annotations

import pytest

from serve.errors import TabrankError
from training.search.clock import Clock


def test_a_search_goes_on_with_what_is_left_of_its_budget(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("training.search.clock.time.monotonic", lambda: now[0])
    clock = Clock(tmp_path / "out", 60.0)
    clock.claim("rows", anew=False)
    now[0] = 130.0
    clock.save(over=False)
    now[0] = 500.0  # killed, and called again later
    again = Clock(tmp_path / "out", 60.0)
    again.claim("rows", anew=False)
    now[0] = 510.0
    assert again.spent() == 40.0


def test_another_searchs_folder_is_refused(tmp_path):
    Clock(tmp_path / "out", 60.0).claim("rows", anew=False)
    with pytest.raises(TabrankError, match=r"out: holds a search over another log.*name another folder"):
        Clock(tmp_path / "out", 60.0).claim("other rows", anew=False)


def test_a_folder_that_holds_no_search_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(TabrankError, match="holds no search"):
        Clock(tmp_path, 60.0)
    assert (tmp_path / "precious").exists()


def test_a_refresh_begins_anew_after_one_that_is_over_or_was_of_other_rows(tmp_path):
    out = tmp_path / "out"
    Clock(out, 60.0).claim("rows", anew=True)
    (out / "left").touch()
    Clock(out, 60.0).claim("rows", anew=True)
    assert (out / "left").exists()  # a killed one goes on
    clock = Clock(out, 60.0)
    clock.claim("newer rows", anew=True)
    assert not (out / "left").exists()
    (out / "left").touch()
    clock.save(over=True)
    Clock(out, 60.0).claim("newer rows", anew=True)
    assert not (out / "left").exists()


def test_what_the_first_call_chose_stays_whatever_budget_comes_later(tmp_path):
    first = Clock(tmp_path / "out", 60.0)
    first.claim("rows", anew=False)
    assert first.keep("trial_rows", 50_000) == 50_000
    later = Clock(tmp_path / "out", 600.0)
    later.claim("rows", anew=False)
    assert later.keep("trial_rows", 300_000) == 50_000


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "out").mkdir()
    Clock(tmp_path / "out", 60.0).claim("rows", anew=False)
