"""The trials of a search: networks trained side by side on Ray Tune until the time is up."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from serve.errors import TabrankError
from training.loop import FitConfig, inputs
from training.network import NetworkConfig
from training.prepare import encoded
from training.search.clock import Clock
from training.search.cost import us_per_candidate
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.space import SMALLEST, Space
from training.search.study import Study
from training.search.task import Task, sample
from training.search.trial import Job, needs, run_trial

ROWS_PER_S = 500
"""Rows that a trial trains on for each second of the budget; with more there would be too few trials."""
LEAST_ROWS = 50_000
WAIT_S = 20.0
"""What the end of a search takes beside training: starting the workers, measures, writing."""
FEW_ROWS = 100_000
FAILURES = 5
"""So many failed trials and no other end a search."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which goes on when it is called again
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""What Ray Tune must find in the environment; a value that is set already wins."""


def run_trials(
    task: Task, board: Leaderboard, clock: Clock, *, first: Sequence[FitConfig], progress: SearchProgress
) -> None:
    """Trains networks until what is left of the budget is needed for the winner; `first` before all others.

    Raises:
        TabrankError: nothing fits the cost, or no network could be trained.
    """
    # What the first call chose stays, whatever budget comes later: else trials could not be compared.
    most = clock.keep("trial_rows", max(LEAST_ROWS, int(clock.budget_s * ROWS_PER_S)))
    rows = sample(task.parts["training"], most)
    deadline = _Deadline(clock, board, task, len(task.before) / len(rows), progress)
    if deadline.stop_all():
        _check_winner(board, task)
        return
    study = _study(task, board, clock, len(rows), first, deadline, progress)
    folder = board.path.parent.resolve() / "trials"
    job = Job(folder, task.encoder.to_json(), task.base, len(rows))
    valid = task.valid
    train_inputs, valid_inputs = (
        inputs(encoded(task.encoder, part), task.encoder, task.base.network) for part in (rows, valid)
    )
    job.save(train_inputs, valid_inputs, valid.slate)
    del train_inputs, valid_inputs
    progress.searching(clock.budget_s)
    try:
        _tuner(job, study, deadline).fit()
    finally:
        progress.searched()
        shutil.rmtree(folder, ignore_errors=True)
    _check_winner(board, task)


def check_cost(task: Task) -> None:
    """Raises TabrankError where not even the smallest network serves within the cost."""
    if task.most_us is not None and (cheapest := _cost(task, SMALLEST)) > task.most_us:
        raise TabrankError(
            f"--max-us-per-candidate {task.most_us:g}: the smallest network takes {cheapest:.2f} µs on this "
            "machine; allow more, or give the surface fewer features"
        )


def _cost(task: Task, network: NetworkConfig) -> float:
    matrix = task.valid.matrix
    return us_per_candidate(task.encoder, network, matrix.numeric, matrix.category)


def _check_winner(board: Leaderboard, task: Task) -> None:
    if board.winner(task.most_us) is None:
        failures = [entry.failed for entry in board.tried() if entry.failed]
        why = f"the last one: {failures[-1]}" if failures else "none that was fits the cost"
        raise TabrankError(f"search: no network could be trained; {why}")


def reserve_s(board: Leaderboard, task: Task, winner: Entry, scale: float, num_teachers: int) -> float:
    """Seconds for the end of a search: teachers, the winner itself, its rivals and the measures.

    `scale`: how many rows they are trained on for each row of a trial.
    """
    fits = 1 + math.ceil(num_teachers / int(ray.cluster_resources()["CPU"]))
    rivals_s = sum(entry.seconds for entry in board.entries if entry.kind != "tabnet")
    return 1.3 * (fits * winner.seconds * scale + rivals_s) + WAIT_S


def _study(
    task: Task,
    board: Leaderboard,
    clock: Clock,
    num_rows: int,
    first: Sequence[FitConfig],
    deadline: _Deadline,
    progress: SearchProgress,
) -> Study:
    def cost(network: NetworkConfig) -> float:
        return _cost(task, network)

    def told(entry: Entry) -> None:
        clock.save(over=False)
        progress.trial(entry, board.winner(task.most_us), deadline.left_s())

    return Study(
        Space(num_rows),
        task.base,
        board,
        first=[*first, *_known_good(task.base, num_rows)],
        cost=cost,
        most_us=task.most_us,
        rate=float(task.valid.label.mean()),
        told=told,
    )


def _known_good(base: FitConfig, num_rows: int) -> list[FitConfig]:
    """What is tried before the sampler's own: the default and the smallest network; few rows want strong decay."""
    if num_rows < FEW_ROWS:
        base = replace(base, weight_decay=0.3)
    return [base, replace(base, network=SMALLEST)]


def _tuner(job: Job, study: Study, deadline: _Deadline) -> tune.Tuner:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), needs()),
        tune_config=tune.TuneConfig(
            search_alg=study,
            # of those that come to a quarter and a half of their schedule the worse half is stopped there
            scheduler=ASHAScheduler(
                time_attr="percent",
                metric="valid_logloss",
                mode="min",
                max_t=100,
                grace_period=25,
                reduction_factor=2,
            ),
            num_samples=-1,
            max_concurrent_trials=int(ray.cluster_resources()["CPU"]),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=str(job.folder / "tune"), stop=deadline, verbose=0
        ),
    )


class _Deadline(tune.Stopper):  # type: ignore[misc]
    """Ends the trials when what is left of the budget is needed to train and measure the winner."""

    def __init__(
        self, clock: Clock, board: Leaderboard, task: Task, scale: float, progress: SearchProgress
    ) -> None:
        """`scale`: how many rows the winner is trained on for each row of a trial."""
        self._clock, self._board, self._task, self._scale = clock, board, task, scale
        self._progress = progress

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of what it runs, which nobody reads

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended for itself: that is the scheduler's."""
        return False

    def left_s(self) -> float:
        """Seconds that are left for trials, which get half of the budget at least."""
        winner = self._board.winner(self._task.most_us)
        reserve = 0.0
        if winner:
            reserve = reserve_s(self._board, self._task, winner, self._scale, self._task.num_teachers)
        return self._clock.budget_s - min(reserve, self._clock.budget_s / 2) - self._clock.spent()

    def stop_all(self) -> bool:
        """Whether the time is up; a search without a finished trial goes on until it has one."""
        self._progress.elapsed(self._clock.spent())
        if self._board.winner(self._task.most_us) is None:
            tried = self._board.tried()
            return len(tried) >= FAILURES and all(entry.failed for entry in tried)
        return self.left_s() <= 0
