"""Trials of a search: train networks in parallel on Ray Tune until the time is up.

`SearchRun` holds what the trials and the final training of one call share.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from training.data.dataset import sample
from training.evaluation.rivals import trees
from training.fit.loop import FitConfig
from training.fit.prepare import encode_rows
from training.fit.sizing import sized
from training.fit.teaching import mixed
from training.network.network import NetworkConfig
from training.search.budget import Clock, Forecast, row_s, work
from training.search.cost import Costs
from training.search.leaderboard import BoardEntry, Judged, Leaderboard
from training.search.space import SMALLEST, Space
from training.search.study import Study
from training.search.task import Task
from training.search.trial import needs, num_at_once, run_trial
from training.terminal import print_progress

# Training rows of a trial for each second of the budget. More rows would leave too few trials.
ROWS_PER_S = 500
# Give each trial at least this many rows, however small the budget.
MIN_TRIAL_ROWS = 15_000
# End the trials after this many failures. Fewer may be the fault of single points of the space.
MAX_FAILED_TRIALS = 5
# Tell the progress this often, because a single trial may take minutes.
TOLD_EVERY_S = 15.0


@dataclass(frozen=True)
class SearchRun:
    """One call of a search, for its trials and its final training."""

    task: Task
    board: Leaderboard
    clock: Clock
    forecast: Forecast

    def winner(self) -> BoardEntry | None:
        """Return the best finished network within the cost so far."""
        return next(iter(self.board.ranking(self.task.settings.max_us)), None)


class Deadline(tune.Stopper):  # type: ignore[misc]
    """End of the trials: reserves the time that the winner's training and evaluation need."""

    def __init__(self, run: SearchRun, num_train: int, num_valid: int) -> None:
        """Create a deadline; `num_train` and `num_valid` count the rows of a trial."""
        self._run = run
        self._num_train, self._num_valid = num_train, num_valid
        # Reserve at most half of the time after reading and rivals, to leave the other for trials.
        self._max_end_s = max(run.clock.budget_s - run.clock.running(), 0.0) / 2

    def left_s(self, winner: BoardEntry | None = None) -> float:
        """Return the seconds left for trials, by default with the winner so far."""
        winner = winner or self._run.winner()
        if winner is None:
            return self._run.clock.left()
        training = self._run.forecast.within(winner, self._max_end_s)
        return self._run.clock.left() - self._run.forecast.seconds(winner, training)

    def warn_of_shortage(self, first: BoardEntry) -> None:
        """Tell of a budget in which no whole trial like the first one can follow it."""
        clock, forecast, took_s = self._run.clock, self._run.forecast, first.seconds / first.share
        whole = replace(first, rows=first.rows / first.share, seconds=took_s)
        if self.left_s(whole) < took_s:
            enough_s = clock.spent() + took_s + forecast.seconds(whole, forecast.whole(whole))
            print_progress(
                f"--budget of {spelled(clock.budget_s)} is too small to compare networks: {first.name} takes "
                f"{spelled(took_s)}; --budget {math.ceil(enough_s / 60)}m is enough for another like it and the rest"
            )

    def in_time(self, config: FitConfig) -> bool:
        """Return whether a new trial would end in time, judged by the trials before it.

        Always allow trials while none has won.
        """
        paces = [row_s(entry) for entry in self._run.board.tried() if entry.rows]
        if self._run.winner() is None or not paces:
            return True
        return work(config.epochs, self._num_train, self._num_valid) * median(paces) <= self.left_s()

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune stores a copy of its configuration, which nobody reads.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop a single trial: the scheduler does."""
        return False

    def stop_all(self) -> bool:
        """Return whether to end the trials.

        Without a finished trial, continue until one finishes or `MAX_FAILED_TRIALS` fail.
        """
        tried, most = self._run.board.tried(), self._run.task.settings.max_trials
        is_late = self.left_s() <= 0 or (most is not None and len(tried) >= most)
        failed = [entry for entry in tried if entry.failed]
        if len(failed) >= MAX_FAILED_TRIALS and (is_late or len(failed) == len(tried)):
            return True
        return is_late and any(entry.finished for entry in tried)


class Progress(tune.Callback):  # type: ignore[misc]
    """Tells every `TOLD_EVERY_S` how far the networks are that are in training."""

    def __init__(self, deadline: Deadline, board: Leaderboard) -> None:
        self._deadline, self._board, self._told_s = deadline, board, time.monotonic()

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:
        """Print a line if it is time; Ray Tune calls this many times a second."""
        if time.monotonic() - self._told_s >= TOLD_EVERY_S:
            self._told_s = time.monotonic()
            running = [one.last_result or {} for one in trials if one.status == Trial.RUNNING]
            far = " and ".join(f"{result.get('percent', 0)} %" for result in running)
            now = f"in training: {len(running)}" + f", at {far} of their epochs" * bool(running)
            left = max(self._deadline.left_s(), 0) / 60
            print_progress(f"networks tried: {len(self._board.tried())}; {now}; {left:.1f} min left")


def run_trials(run: SearchRun, costs: Costs, first: Sequence[FitConfig]) -> None:
    """Train networks until the winner's training needs the rest of the budget; try `first` first.

    Raises:
        TabrankError: nothing fits the cost, or no network could be trained.
    """
    task, board, clock = run.task, run.board, run.clock
    # Keep the size of the first call whatever the later budget, so that trials are comparable.
    most = clock.setdefault("trial_rows", max(MIN_TRIAL_ROWS, int(clock.budget_s * ROWS_PER_S)))
    rows, valid = sample(task.parts["training"], most), task.valid
    deadline = Deadline(run, len(rows), len(valid))
    if clock.left() <= 0:
        print_progress(f"--budget of {spelled(clock.budget_s)} is too small: it is spent before the trials")
    if not deadline.stop_all():
        study = _study(run, deadline, costs, first, len(rows))
        folder = board.path.parent.resolve() / "trials"
        train = encode_rows(task.encoder, rows, task.examinations)
        if task.settings.num_teachers and (tuned := board.of("lightgbm")):
            # The winner will be taught, and less regularisation suits a network that is.
            rival = trees(task.encoder, rows, task.examinations, tuned.point)
            train = mixed(train, [], rival(rows.matrix))
        train.save(folder, "train")
        encode_rows(task.encoder, valid, task.examinations).save(folder, "valid")
        try:
            _tuner(task, folder, study, deadline, Progress(deadline, board)).fit()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if run.winner() is None:
        failures = [entry.failed for entry in board.tried() if entry.failed]
        if any(entry.finished for entry in board.tried()):
            raise TabrankError(
                f"search: none of {len(board.tried())} networks serves within {task.settings.max_us:g} µs a candidate; "
                "give more --budget, or allow more --max-us-per-candidate"
            )
        raise TabrankError(f"search: no network could be trained; last failure: {failures[-1]}")


def check_cost(costs: Costs, max_us: float | None) -> None:
    """Raise TabrankError if even the smallest network costs more than `max_us`."""
    if max_us is not None and (cheapest := costs(SMALLEST)) > max_us:
        raise TabrankError(
            f"--max-us-per-candidate {max_us:g}: the smallest network takes {cheapest:.2f} µs on this "
            "machine; allow more, or give the surface fewer features"
        )


def _study(
    run: SearchRun, deadline: Deadline, costs: Costs, first: Sequence[FitConfig], num_rows: int
) -> Study:
    """Return the study of trials on `num_rows` rows."""
    task, board, clock = run.task, run.board, run.clock
    began_s, num_before = clock.spent(), len(board.tried())

    def on_entry(entry: BoardEntry) -> None:
        if len(board.tried()) == num_before + 1:
            run.forecast.started(clock.spent() - began_s - entry.seconds)
        clock.save(over=False)
        print_progress(describe_trial(entry, run.winner(), deadline.left_s()))
        if [one for one in board.tried() if one.rows] == [entry]:
            deadline.warn_of_shortage(entry)

    # Also try the network of `fit` first, and a larger one.
    default = sized(num_rows, seed=task.base.seed)
    return Study(
        Space(num_rows),
        task.base,
        board,
        first=[*first, default, replace(default, network=NetworkConfig())],
        cost=costs,
        max_us=task.settings.max_us,
        worst=Judged.of(task).worst,
        in_time=deadline.in_time,
        on_entry=on_entry,
    )


def describe_trial(entry: BoardEntry, best: BoardEntry | None, left_s: float) -> str:
    """Describe the result of a trial, the best one so far and the time left for trials."""
    point = entry.point
    what = f"{point['width']} wide, {point['n_steps']} steps, {point['mask_type']}"
    if entry.failed:
        how = f"failed: {entry.failed}"
    else:
        how = f"logloss {entry.logloss:.4f}"
        how += "" if entry.finished else f" at {entry.share:.0%} of its epochs, stopped"
    parts = [f"{entry.name}: {what}, {entry.us_per_candidate:.1f} µs, {how}"]
    parts += [f"best {best.logloss:.4f} ({best.name})"] if best else []
    return "; ".join([*parts, f"{max(left_s, 0) / 60:.1f} min left"])


def _tuner(task: Task, folder: Path, study: Study, deadline: Deadline, progress: Progress) -> tune.Tuner:
    shared = {"folder": folder, "encoder": task.encoder, "base": task.base, "judged": Judged.of(task)}
    trainable = tune.with_parameters(run_trial, **shared)
    return tune.Tuner(
        tune.with_resources(trainable, needs()),
        tune_config=tune.TuneConfig(
            search_alg=study,
            # Stop the worse half of the trials at a quarter and at half of their schedule.
            scheduler=ASHAScheduler(
                time_attr="percent",
                metric="valid_logloss",
                mode="min",
                max_t=100,
                grace_period=25,
                reduction_factor=2,
            ),
            num_samples=-1,
            max_concurrent_trials=num_at_once(),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=str(folder / "tune"), stop=deadline, callbacks=[progress], verbose=0
        ),
    )
