"""Trials of a search: train networks in parallel on Ray Tune until the time is up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from serve.contract.errors import TabrankError
from training.data.prepare import encode_rows
from training.fit.loop import FitConfig
from training.search.cost import Costs
from training.search.leaderboard import BoardEntry, Leaderboard
from training.search.run import Deadline, SearchRun
from training.search.space import SMALLEST, Space
from training.search.study import Study
from training.search.task import sample
from training.search.trial import SLATES, Job, needs, num_at_once, run_trial

# Training rows of a trial for each second of the budget. More rows would leave too few trials.
ROWS_PER_S = 500
# Give each trial at least this many rows, however small the budget.
MIN_TRIAL_ROWS = 15_000
# Try stronger weight decay first below this number of rows.
FEW_ROWS = 100_000
# Environment variables for Ray Tune. A value that is already set takes precedence.
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Let Ctrl-C end the command; the next call resumes the search.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


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
    if not deadline.stop_all():
        study = _study(run, deadline, costs, first, len(rows))
        job = Job(board.path.parent.resolve() / "trials", task.encoder.to_json(), task.base)
        for name, part in (("train", rows), ("valid", valid)):
            encode_rows(task.encoder, part).save(job.folder, name)
        np.save(job.folder / SLATES, valid.slate)
        run.progress.searching(clock.budget_s)
        try:
            _tuner(job, study, deadline).fit()
        finally:
            run.progress.searched()
            shutil.rmtree(job.folder, ignore_errors=True)
    _check_winner(board, task.settings.max_us)


def check_cost(costs: Costs, max_us: float | None) -> None:
    """Raise TabrankError if even the smallest network costs more than `max_us`."""
    if max_us is not None and (cheapest := costs(SMALLEST)) > max_us:
        raise TabrankError(
            f"--max-us-per-candidate {max_us:g}: the smallest network takes {cheapest:.2f} µs on this "
            "machine; allow more, or give the surface fewer features"
        )


def _check_winner(board: Leaderboard, max_us: float | None) -> None:
    if board.winner(max_us) is None:
        failures = [entry.failed for entry in board.tried() if entry.failed]
        if any(entry.finished for entry in board.tried()):
            raise TabrankError(
                f"search: none of {len(board.tried())} networks serves within {max_us:g} µs a candidate, and the "
                "budget is spent; give more --budget, or allow more --max-us-per-candidate"
            )
        raise TabrankError(f"search: no network could be trained; last failure: {failures[-1]}")


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
        run.progress.trial(entry, run.winner(), deadline.left_s())

    return Study(
        Space(num_rows),
        task.base,
        board,
        first=[*first, *_known_good(task.base, num_rows)],
        cost=costs,
        max_us=task.settings.max_us,
        rate=float(task.valid.label.mean()),
        in_time=deadline.in_time,
        on_entry=on_entry,
    )


def _known_good(base: FitConfig, num_rows: int) -> list[FitConfig]:
    """Return the first points to try: the default network and the smallest one.

    A small training set needs stronger weight decay.
    """
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
            name="run", storage_path=str(job.folder / "tune"), stop=deadline, verbose=0
        ),
    )
