from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from training.fit.loop import FitConfig
from training.search.budget import Forecast
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.task import SearchSettings
from training.search.trials import MAX_FAILED_TRIALS, Deadline, Progress, SearchRun

# The trial takes 10 s for 100,000 row passes; the winner trains on 200,000 rows.
TRIAL = BoardEntry(
    "TabNet 1", "tabnet", 0.4, us_per_candidate=2.0, seconds=10.0, rows=1e5, point={"epochs": 6}
)
RIVAL = BoardEntry("LightGBM", "lightgbm", 0.41, us_per_candidate=5.0, seconds=6.0, rows=1e5)


class Clock:
    """Budget of 300 s whose spent part the test sets; reading took 20 s."""

    budget_s = 300.0
    spent_s = 20.0

    def spent(self) -> float:
        return self.spent_s

    def running(self) -> float:
        return self.spent_s

    def left(self) -> float:
        return self.budget_s - self.spent_s


@pytest.fixture
def search(tmp_path) -> SimpleNamespace:
    """Clock, leaderboard and factories of forecasts and deadlines."""
    clock, board = Clock(), Leaderboard(tmp_path / "leaderboard.jsonl")

    def forecast(num_rows=200_000, num_teachers=4) -> Forecast:
        return Forecast(board, num_rows, num_test=20_000, num_teachers=num_teachers, num_at_once=2)

    def deadline(made=None, **bounds) -> Deadline:
        task = SimpleNamespace(settings=SearchSettings(clock.budget_s, **bounds))
        run = SearchRun(task, board, clock, made or forecast())
        return Deadline(run, num_train=20_000, num_valid=0)

    return SimpleNamespace(clock=clock, board=board, forecast=forecast, deadline=deadline)


def test_the_forecast_adds_rounds_of_teachers_the_winner_and_the_rivals(search):
    search.board.add(RIVAL)
    forecast = search.forecast()
    whole = forecast.whole(TRIAL)
    alone = replace(whole, num_teachers=0)
    took = [forecast.seconds(TRIAL, replace(whole, num_teachers=num)) for num in range(5)]
    # Two teachers train in parallel.
    assert took[0] < took[1] == took[2] < took[3] == took[4]
    half = forecast.seconds(TRIAL, replace(alone, epochs=whole.epochs // 2))
    assert half < took[0] < 2 * half
    without = replace(forecast, board=Leaderboard(search.board.path.with_name("empty")))
    # The rival took 6 s for half as many rows.
    assert took[0] - without.seconds(TRIAL, alone) == pytest.approx(1.1 * 12.0)


def test_the_teachers_are_as_many_as_the_time_allows(search):
    forecast = search.forecast()
    whole = forecast.whole(TRIAL)
    for num_teachers in (4, 2, 0):
        needed = forecast.seconds(TRIAL, replace(whole, num_teachers=num_teachers))
        assert forecast.within(TRIAL, needed) == replace(whole, num_teachers=num_teachers)
        assert forecast.seconds(TRIAL, forecast.within(TRIAL, needed - 1)) <= needed - 1


def test_a_slow_start_of_the_first_worker_raises_the_forecast(search):
    forecast = search.forecast()
    whole = forecast.whole(TRIAL)
    idle = forecast.seconds(TRIAL, whole)
    forecast.started(1.0)
    assert forecast.seconds(TRIAL, whole) == idle
    forecast.started(27.0)
    assert forecast.seconds(TRIAL, whole) == pytest.approx(idle + 1.1 * 3 * 20.0)


def test_little_time_cuts_epochs_then_rows_but_not_below_the_trial(search):
    forecast = search.forecast(num_teachers=0)
    whole = forecast.whole(TRIAL)
    alone = forecast.seconds(TRIAL, whole)
    fewer = forecast.within(TRIAL, 0.7 * alone)
    assert fewer.num_rows == whole.num_rows
    assert 1 <= fewer.epochs < whole.epochs
    least = forecast.within(TRIAL, 0.0)
    assert (least.epochs, least.num_rows) == (1, 100_000)
    assert "1 of 6 epochs on 100,000 of 200,000 rows" in least.describe_shortfall(whole)


def test_trials_go_on_until_what_is_left_is_needed_for_the_end(search):
    search.board.add(TRIAL)
    forecast = search.forecast(num_rows=30_000, num_teachers=2)
    needed = forecast.seconds(TRIAL, forecast.whole(TRIAL))
    # Half of the 280 s after reading are enough.
    assert needed < 140
    deadline = search.deadline(forecast)
    search.clock.spent_s = 300 - needed - 0.1
    assert not deadline.stop_all()
    search.clock.spent_s = 300 - needed + 0.1
    assert deadline.stop_all()


def test_the_final_training_takes_at_most_half_of_the_time(search):
    search.board.add(TRIAL)
    forecast = search.forecast()
    assert forecast.seconds(TRIAL, forecast.whole(TRIAL)) > 140
    deadline = search.deadline(forecast)
    reserved = search.clock.left() - deadline.left_s()
    assert reserved == forecast.seconds(TRIAL, forecast.within(TRIAL, 140.0))
    assert 100 < reserved <= 140


def test_a_trial_that_would_not_end_in_time_is_not_begun(search):
    deadline = search.deadline(search.forecast(num_rows=30_000, num_teachers=0))
    # The speed is not known yet.
    assert deadline.in_time(FitConfig(epochs=1000))
    search.board.add(TRIAL)
    search.clock.spent_s += deadline.left_s() - 11.0
    # Five epochs of 20,000 rows take 10 s.
    assert deadline.in_time(FitConfig(epochs=5))
    assert not deadline.in_time(FitConfig(epochs=6))


def test_a_search_needs_a_finished_trial_or_enough_failures_to_end(search):
    deadline = search.deadline()
    search.clock.spent_s = 1000.0
    assert not deadline.stop_all()
    search.board.add(replace(TRIAL, share=0.5))
    for _ in range(MAX_FAILED_TRIALS):
        assert not deadline.stop_all()
        search.board.add(replace(TRIAL, valid_logloss=None, failed="it diverged"))
    assert deadline.stop_all()


def test_a_search_of_which_nothing_fits_the_cost_ends_with_its_budget(search):
    search.board.add(TRIAL)
    deadline = search.deadline(max_us=1.0)
    assert not deadline.stop_all()
    search.clock.spent_s = 301.0
    assert deadline.stop_all()


def test_so_many_trials_end_a_search_before_its_time(search):
    deadline = search.deadline(max_trials=1)
    assert not deadline.stop_all()
    search.board.add(TRIAL)
    assert deadline.stop_all()


def test_a_budget_too_small_is_told_after_the_first_trial_with_one_that_is_enough(search, capsys):
    forecast = search.forecast()
    deadline = search.deadline(forecast)
    search.board.add(TRIAL)
    search.clock.spent_s += 30.0
    deadline.warn_of_shortage(TRIAL)
    assert capsys.readouterr().err == ""
    search.clock.budget_s = 40.0
    deadline.warn_of_shortage(TRIAL)
    told = capsys.readouterr().err
    assert told.startswith("--budget of 40 s is too small to compare networks: TabNet 1 takes 10 s; --budget")
    (minutes,) = re.findall(r"--budget (\d+)m is enough for another like it and the rest$", told.strip())
    # Another trial is begun, and after it the whole final training fits; not with a minute less.
    search.clock.budget_s = 60.0 * int(minutes)
    assert deadline.in_time(FitConfig(epochs=5))
    search.clock.spent_s += TRIAL.seconds
    whole = forecast.whole(TRIAL)
    assert forecast.within(TRIAL, search.clock.left()) == whole
    assert forecast.within(TRIAL, search.clock.left() - 60.0) != whole


def test_a_first_trial_that_was_stopped_tells_how_long_a_whole_one_takes(search, capsys):
    deadline = search.deadline(search.forecast(num_rows=20_000, num_teachers=0))
    stopped = replace(TRIAL, share=0.25, seconds=2.5, rows=2.5e4)
    search.board.add(stopped)
    search.clock.budget_s, search.clock.spent_s = 40.0, 30.0
    deadline.warn_of_shortage(stopped)
    assert "TabNet 1 takes 10 s; --budget" in capsys.readouterr().err


def test_while_networks_train_the_search_tells_how_far_they_are(search, capsys, monkeypatch):
    now_s = 1_000.0
    monkeypatch.setattr("training.search.trials.time", SimpleNamespace(monotonic=lambda: now_s))
    progress = Progress(search.deadline(), search.board)
    trials = [
        SimpleNamespace(status="RUNNING", last_result={"percent": 40}),
        SimpleNamespace(status="RUNNING", last_result=None),
        SimpleNamespace(status="TERMINATED", last_result={"percent": 100}),
    ]
    for step in range(40):
        now_s += 1.0
        progress.on_step_end(step, trials)
    told = "networks tried: 0; in training: 2, at 40 % and 0 % of their epochs; 4.7 min left\n"
    assert capsys.readouterr().err == 2 * told
    now_s += 20.0
    progress.on_step_end(40, [])
    assert "; in training: 0; " in capsys.readouterr().err
