"""Search: find the best network for a log within a time budget and a serving cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.features.surface import Surface
from serve.model.artifact import Artifact, current
from training.evaluation.leakage import suspects
from training.fit.loop import Diverged, FitConfig
from training.fit.publish import check_surface
from training.fit.trainer import ray_session
from training.network.network import NetworkConfig
from training.search.budget import Clock, Forecast
from training.search.cost import Costs, us_per_candidate
from training.search.incumbent import configuration, followed, reasons, take_place
from training.search.leaderboard import BoardEntry, Leaderboard, compete
from training.search.progress import SearchProgress
from training.search.task import Task
from training.search.trial import num_at_once
from training.search.trials import check_cost, run_trials
from training.search.winner import TEST_LOOKS, finish, headline


def search(
    surface: Surface,
    log: Path,
    out: Path,
    *,
    budget_s: float,
    max_us: float | None = None,
    num_teachers: int = 0,
    seed: int = 0,
    days: float | None = None,
    models: Path | None = None,
    restart: bool = False,
    max_trials: int | None = None,
    progress: SearchProgress,
) -> dict[str, Any]:
    """Search for `budget_s` seconds and write the winner with its report to `out`/artifact.

    A killed search resumes when it is called again with the same `out`; it loses the trials that
    were running. `budget_s` and `max_trials` bound all calls together. `max_us` bounds the
    winner's serving cost in µs a candidate. The mean of `num_teachers` networks like the winner,
    with other seeds, teaches the network that is written (`training.search.distil`). `days`
    drops rows older than that before the log's end; their events still build the state. With
    `restart`, start again if `out` holds a search that has ended, or one of other rows.

    With `models`, the search starts from their current model's configuration. A winner that
    passes is published there and promoted. It passes if it beats popular by two standard errors,
    the current model does not beat it by two, and no feature looks like target leakage. The
    answer's `reasons` say why it does not pass. If another model was made current during the
    search, the winner is published and not promoted.

    Raises:
        TabrankError: the log is bad or has too few rows, `out` belongs to another search, or no
            network fits `max_us`.
    """
    if max_us is not None and not 0 < max_us < math.inf:
        raise TabrankError(f"--max-us-per-candidate {max_us:g}: must be a finite number above 0")
    if models:
        check_surface(models, surface.name)
    with Clock(out, budget_s) as clock:
        progress.say("reading the log and computing features")
        task = Task.read(
            surface,
            log,
            FitConfig(seed=seed, position_bias=surface.position_bias),
            max_us=max_us,
            num_teachers=num_teachers,
            days=days,
            progress=progress.share,
        )
        clock.claim(task.identity, restart=restart)
        board = Leaderboard(out / "leaderboard.jsonl")
        follows = clock.setdefault("follows", current(models)) if models else None
        last = followed(models, follows, surface, progress.say) if models and follows else None
        suspected = [str(suspect) for suspect in suspects(task.parts["training"])]
        for suspect in suspected:
            progress.say(suspect)
        winner, manifest = _run(task, board, clock, last, max_trials, progress)
        why_not = [*reasons(manifest), *suspected]
        passed = not why_not
        promoted = (
            models is not None and passed and take_place(out / "artifact", models, follows, progress.say)
        )
        clock.save(over=True)
    return {
        "headline": headline(board, winner, max_us),
        "winner": winner.name,
        "config": winner.point,
        "us_per_candidate": winner.us_per_candidate,
        "max_us_per_candidate": max_us,
        "artifact": str(out / "artifact"),
        "version": manifest["version"],
        "metrics": manifest["metrics"],
        "paired": manifest["paired"],
        "gate": manifest["gate"],
        "suspects": suspected,
        "passed": passed,
        "reasons": why_not,
        "published": bool(models and passed),
        "promoted": promoted,
        "trials": len(board.tried()),
        "test_looks": clock.get_count(TEST_LOOKS),
        "rows": {name: len(part) for name, part in task.parts.items()},
        "seconds": round(clock.spent(), 1),
        "leaderboard": board.table(max_us),
    }


def _run(
    task: Task,
    board: Leaderboard,
    clock: Clock,
    last: Artifact | None,
    max_trials: int | None,
    progress: SearchProgress,
) -> tuple[BoardEntry, Mapping[str, Any]]:
    """Run rivals, trials and the final training; return the winner and its manifest.

    `last` is the incumbent.
    """

    def measured(network: NetworkConfig) -> float:
        matrix = task.valid.matrix
        return us_per_candidate(task.encoder, network, matrix.numeric, matrix.category)

    costs = Costs(measured, board.entries)
    check_cost(costs, task.max_us)
    compete(board, task.encoder, task.parts["training"], task.valid, progress.say)
    with ray_session():
        forecast = Forecast(
            board,
            num_rows=len(task.before),
            num_test=len(task.parts["test"]),
            num_teachers=task.num_teachers,
            num_at_once=num_at_once(),
        )
        run_trials(
            task,
            board,
            clock,
            costs=costs,
            forecast=forecast,
            first=configuration(last.manifest, task.base, progress.say) if last else [],
            max_trials=max_trials,
            progress=progress,
        )
        ranking = board.ranking(task.max_us)
        for winner in ranking:
            progress.say(headline(board, winner, task.max_us))
            try:
                return winner, finish(task, board, winner, clock, forecast, last, progress)
            except Diverged as error:
                if winner is ranking[-1]:
                    raise
                progress.say(f"{winner.name} failed on all rows, the next best follows: {error}")
    raise AssertionError("run_trials answers with a network, or not at all")
