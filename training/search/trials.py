"""The trials of a search: networks trained side by side on Ray Tune until the time is up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from serve.contract.errors import TabrankError
from training.data.prepare import encoded
from training.fit.loop import FitConfig
from training.search.budget import Clock, Deadline, Forecast
from training.search.cost import Costs
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.space import SMALLEST, Space
from training.search.study import Study
from training.search.task import Task, sample
from training.search.trial import Job, needs, num_at_once, run_trial

ROWS_PER_S = 500
"""Rows that a trial trains on for each second of the budget; with more there would be too few trials."""
LEAST_ROWS = 15_000
FEW_ROWS = 100_000
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which goes on when it is called again
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""What Ray Tune must find in the environment; a value that is set already wins."""


def run_trials(
    task: Task,
    board: Leaderboard,
    clock: Clock,
    *,
    costs: Costs,
    forecast: Forecast,
    first: Sequence[FitConfig],
    most_trials: int | None,
    progress: SearchProgress,
) -> None:
    """Trains networks until what is left of the budget is needed for the winner; `first` before all others.

    Raises:
        TabrankError: nothing fits the cost, or no network could be trained.
    """
    # What the first call chose stays, whatever budget comes later: else trials could not be compared.
    most = clock.keep("trial_rows", max(LEAST_ROWS, int(clock.budget_s * ROWS_PER_S)))
    rows, valid = sample(task.parts["training"], most), task.valid
    deadline = Deadline(
        clock,
        board,
        forecast,
        num_train=len(rows),
        num_valid=len(valid),
        most_us=task.most_us,
        most_trials=most_trials,
        progress=progress,
    )
    if not deadline.is_over():
        study = _study(task, board, clock, len(rows), costs, forecast, first, deadline, progress)
        job = Job(board.path.parent.resolve() / "trials", task.encoder.to_json(), task.base)
        for name, part in (("train", rows), ("valid", valid)):
            job.save(name, encoded(task.encoder, part))
        np.save(job.slates, valid.slate)
        progress.searching(clock.budget_s)
        try:
            _tuner(job, study, deadline).fit()
        finally:
            progress.searched()
            shutil.rmtree(job.folder, ignore_errors=True)
    _check_winner(board, task.most_us)


def check_cost(costs: Costs, most_us: float | None) -> None:
    """Raises TabrankError where not even the smallest network serves within the cost."""
    if most_us is not None and (cheapest := costs(SMALLEST)) > most_us:
        raise TabrankError(
            f"--max-us-per-candidate {most_us:g}: the smallest network takes {cheapest:.2f} µs on this "
            "machine; allow more, or give the surface fewer features"
        )


def _check_winner(board: Leaderboard, most_us: float | None) -> None:
    if board.winner(most_us) is None:
        failures = [entry.failed for entry in board.tried() if entry.failed]
        if any(entry.finished for entry in board.tried()):
            raise TabrankError(
                f"search: none of {len(board.tried())} networks serves within {most_us:g} µs a candidate, and the "
                "budget is spent; give more --budget, or allow more --max-us-per-candidate"
            )
        raise TabrankError(f"search: no network could be trained; the last one: {failures[-1]}")


def _study(
    task: Task,
    board: Leaderboard,
    clock: Clock,
    num_rows: int,
    costs: Costs,
    forecast: Forecast,
    first: Sequence[FitConfig],
    deadline: Deadline,
    progress: SearchProgress,
) -> Study:
    began_s, num_before = clock.spent(), len(board.tried())

    def told(entry: Entry) -> None:
        if len(board.tried()) == num_before + 1:
            forecast.started(clock.spent() - began_s - entry.seconds)
        clock.save(over=False)
        progress.trial(entry, board.winner(task.most_us), deadline.left_s())

    return Study(
        Space(num_rows),
        task.base,
        board,
        first=[*first, *_known_good(task.base, num_rows)],
        cost=costs,
        most_us=task.most_us,
        rate=float(task.valid.label.mean()),
        in_time=deadline.in_time,
        told=told,
    )


def _known_good(base: FitConfig, num_rows: int) -> list[FitConfig]:
    """What is tried before the sampler's own: the default and the smallest network; few rows want strong decay."""
    if num_rows < FEW_ROWS:
        base = replace(base, weight_decay=0.3)
    return [base, replace(base, network=SMALLEST)]


def _tuner(job: Job, study: Study, deadline: Deadline) -> tune.Tuner:
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
            max_concurrent_trials=num_at_once(),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="run", storage_path=str(job.folder / "tune"), stop=_Stopper(deadline), verbose=0
        ),
    )


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """The deadline as Ray Tune asks for it."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy of what it runs, which nobody reads

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended for itself: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        return self._deadline.is_over()
