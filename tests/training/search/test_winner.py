"""Test the end of a search: the rows that measure its winner, and what may replace the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve.contract.errors import TabrankError
from serve.features.surface import read_surface
from serve.model.artifact import load
from tests.support.inline_ray import InlineRay
from tests.support.shop_log import write_shop
from training.drafting.draft import draft
from training.fit.fit import fit
from training.fit.loop import FitConfig
from training.network.network import Inputs, NetworkConfig
from training.search.budget import Clock, Forecast
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.search import reasons
from training.search.space import Space
from training.search.task import SearchSettings, Task
from training.search.trials import SearchRun, run_trials
from training.search.winner import finish, held_out

CONFIG = FitConfig(NetworkConfig(width=8, n_steps=1), epochs=1, num_workers=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a model of a log, and a search's task on the same log."""
    folder = tmp_path_factory.mktemp("winner")
    write_shop(folder / "log", slates=1_000)
    surface = read_surface(draft(folder / "log").text)
    fit(surface, folder / "log", folder / "model", lambda num: CONFIG)
    task = Task.read(surface, folder / "log", SearchSettings(600.0, models=folder), lambda share: None)
    return folder, replace(task, base=replace(task.base, num_workers=0))


def finished(task, last, out, *rivals):
    """Return the manifest of the winner of a search that tried one network."""
    test = task.parts["test"]
    with Clock(out, 600.0) as clock:
        clock.claim(task.identity, restart=False)
        board = Leaderboard(out / "leaderboard.jsonl")
        point = Space(len(task.before)).point(CONFIG) | {"epochs": 1, "learning_rate": 1e-4}
        board.add(BoardEntry("TabNet 1", "tabnet", 0.4, us_per_candidate=2.0, point=point))
        for rival in rivals:
            board.add(rival)
        num_teachers = task.settings.num_teachers
        forecast = Forecast(board, len(task.before), len(test), num_teachers, 1)
        run = SearchRun(task, board, clock, forecast)
        return finish(run, board.entries[0], last)


def test_a_winner_without_a_model_before_it_is_measured_on_all_test_rows(made, tmp_path):
    _, task = made
    manifest = finished(task, None, tmp_path / "out")
    assert manifest["incumbent"] is None
    assert manifest["test_rows"] == len(task.parts["test"])
    assert "model-current" not in manifest["paired"]


def test_a_folder_of_another_format_is_refused(made, tmp_path, monkeypatch):
    _, task = made
    with Clock(tmp_path / "out", 600.0) as clock:
        clock.claim(task.identity, restart=False)
    monkeypatch.setattr("training.search.task.FOLDER_FORMAT", 0)
    with (
        Clock(tmp_path / "out", 600.0) as clock,
        pytest.raises(TabrankError, match="or of another version; name another folder or remove it"),
    ):
        clock.claim(replace(task).identity, restart=False)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_winner_is_measured_on_the_rows_that_the_current_model_has_not_seen(made, share, tmp_path):
    folder, task = made
    test, last = task.parts["test"], load(folder / "model")
    seen_until_ms = int(np.quantile(test.ts_ms, share)) if share else int(test.ts_ms[0]) - 1
    last = replace(last, manifest={**last.manifest, "seen_until_ms": seen_until_ms})
    manifest = finished(task, last, tmp_path / "out")
    assert manifest["log"] == str(folder / "log")
    num_unseen = int((test.ts_ms > seen_until_ms).sum())
    assert manifest["incumbent"] == {
        "version": last.version,
        "unseen_rows": num_unseen,
        "test_rows": len(test),
    }
    if share < 1:
        assert manifest["test_rows"] == manifest["paired"]["model-current"]["rows"] == num_unseen
    else:
        assert manifest["test_rows"] == len(test)
        assert "wait for newer rows" in reasons(manifest)[-1]
    page = (tmp_path / "out" / "artifact" / "report.html").read_text()
    assert (f"On {num_unseen:,} rows that neither has seen, the model " in page) == (share < 1)


def test_networks_and_lightgbm_teach_the_winner(made, tmp_path, monkeypatch):
    monkeypatch.setattr("training.search.distil.ray", InlineRay)
    monkeypatch.setattr("training.search.distil.needs", lambda: {"cpu": 1.0})
    task = replace(made[1], settings=replace(made[1].settings, num_teachers=2))
    boosted = BoardEntry("LightGBM", "lightgbm", 0.5, point={"num_iterations": 5})
    assert finished(task, None, tmp_path / "taught", boosted)["teachers"] == 3
    assert finished(made[1], None, tmp_path / "untaught")["teachers"] == 0


class Spy:
    """Tuner of trials that keeps the labels on which they train."""

    def __init__(self, task, folder, study, deadline, progress) -> None:
        self.folder = folder

    def fit(self) -> None:
        Spy.labels = Inputs.map(self.folder, "train").label.numpy().copy()


@pytest.mark.parametrize(("num_teachers", "is_taught"), [(4, True), (0, False)])
def test_trials_train_on_the_labels_of_lightgbm_as_the_winner_will(
    made, tmp_path, monkeypatch, num_teachers, is_taught
):
    _, task = made
    task = replace(task, settings=replace(task.settings, num_teachers=num_teachers))
    monkeypatch.setattr("training.search.trials._tuner", Spy)
    with Clock(tmp_path / "out", 600.0) as clock:
        clock.claim(task.identity, restart=False)
        board = Leaderboard(tmp_path / "out" / "leaderboard.jsonl")
        board.add(BoardEntry("LightGBM", "lightgbm", 0.5, point={"num_iterations": 5}))
        run = SearchRun(task, board, clock, Forecast(board, len(task.before), 1, num_teachers, 1))
        with pytest.raises(IndexError):  # no trial ran
            run_trials(run, lambda network: 1.0, [])
    known = task.parts["training"].outcomes
    assert (Spy.labels == known).all() != is_taught
    # 70 % of a label is the teacher's.
    assert np.abs(Spy.labels - known).max() <= 0.7
    assert Spy.labels.mean() == pytest.approx(known.mean(), rel=0.05)


def calibration_of(manifest):
    (outcome,) = manifest["outcomes"].values()
    return outcome["calibration"]


def test_the_winner_is_calibrated_on_viewers_that_train_nothing(made, tmp_path, monkeypatch):
    _, task = made
    # A tenth of so few rows would not show what a map gains.
    monkeypatch.setattr("training.search.winner.HELD_SHARE", 0.4)
    rows, held = held_out(task.before)
    assert not set(rows.viewer) & set(held.viewer)
    assert len(rows) + len(held) == len(task.before)
    assert 0.35 < len(held) / len(task.before) <= 0.4
    manifest = finished(task, None, tmp_path / "out")
    assert manifest["rows"] == len(rows)
    assert manifest["seen_until_ms"] == task.before.ts_ms[-1]
    # So few and small steps leave the network far from the label's rate; the map repairs it.
    assert calibration_of(manifest) != {"a": 1.0, "b": 0.0}
    assert "rows that no network had been trained on" in (tmp_path / "out/artifact/MODEL_CARD.md").read_text()


@pytest.mark.parametrize("num_guests", [240])
def test_one_id_of_most_rows_is_trained_on_and_each_anonymous_exposure_is_a_viewer(made, num_guests):
    before = made[1].before
    number = np.arange(len(before))
    guests = np.where(number < 0.8 * len(before), 1, -1 - number % num_guests)
    _, held = held_out(replace(before, viewer=guests))
    assert 1 not in held.viewer
    assert 0.05 < len(held) / len(before) <= 0.1
    assert len(np.unique(held.viewer)) > 20


@pytest.mark.parametrize("num_viewers", [1, 9])
def test_too_few_viewers_to_hold_any_out_are_all_trained_on(made, num_viewers, tmp_path):
    task = replace(made[1])
    task.__dict__["before"] = replace(task.before, viewer=np.arange(len(task.before)) % num_viewers)
    manifest = finished(task, None, tmp_path / "out")
    assert manifest["rows"] == len(task.before)
    assert calibration_of(manifest) == {"a": 1.0, "b": 0.0}
