"""Search: from a surface, a log and a budget to the best network that serves within its cost."""

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
from training.search.leaderboard import Entry, Leaderboard, compete
from training.search.progress import SearchProgress
from training.search.task import Task
from training.search.trial import num_at_once
from training.search.trials import check_cost, run_trials
from training.search.winner import LOOKS, finish, headline


def search(
    surface: Surface,
    log: Path,
    out: Path,
    *,
    budget_s: float,
    most_us: float | None = None,
    num_teachers: int = 0,
    seed: int = 0,
    days: float | None = None,
    models: Path | None = None,
    anew: bool = False,
    most_trials: int | None = None,
    progress: SearchProgress,
) -> dict[str, Any]:
    """Search for `budget_s` seconds and write the winner, measured and reported, to `out`/artifact.

    A search that was killed goes on when it is called again with the same `out`, and loses the trials that were
    under way; `budget_s` is that of all calls together. `most_us` bounds the µs a candidate of what may win;
    `num_teachers` networks like the winner, of other seeds, teach the one that is written (`training.search.distil`).
    `days` leaves out rows that are older than so many days before the log's end (they still make the state).
    `anew` begins again where `out` holds a search that is over, or one of other rows. `most_trials`, of all calls
    together, end the trials however much time is left.

    With `models`, the search starts from their current model's configuration, and a winner is published there and
    promoted where it passes: it beats popular by two standard errors, the current model does not beat it so, and no
    feature looks as if it knew the future. What keeps it from that is in the answer's `reasons`. Where another model
    was made current meanwhile it is published and not promoted.

    Raises:
        TabrankError: for a bad log, too little data, an `out` of another search, or a `most_us` that nothing fits.
    """
    if most_us is not None and not 0 < most_us < math.inf:
        raise TabrankError(f"--max-us-per-candidate {most_us:g}: must be above 0, and finite")
    if models:
        check_surface(models, surface.name)
    with Clock(out, budget_s) as clock:
        progress.say("reading the log and computing features")
        task = Task.read(
            surface,
            log,
            FitConfig(seed=seed, position_bias=surface.position_bias),
            most_us=most_us,
            num_teachers=num_teachers,
            days=days,
            progress=progress.share,
        )
        clock.claim(task.identity, anew=anew)
        board = Leaderboard(out / "leaderboard.jsonl")
        follows = clock.keep("follows", current(models)) if models else None
        last = followed(models, follows, surface, progress.say) if models and follows else None
        suspected = [str(suspect) for suspect in suspects(task.parts["training"])]
        for suspect in suspected:
            progress.say(suspect)
        winner, manifest = _run(task, board, clock, last, most_trials, progress)
        why_not = [*reasons(manifest), *suspected]
        passed = not why_not
        promoted = (
            models is not None and passed and take_place(out / "artifact", models, follows, progress.say)
        )
        clock.save(over=True)
    return {
        "headline": headline(board, winner, most_us),
        "winner": winner.name,
        "config": winner.point,
        "us_per_candidate": winner.us_per_candidate,
        "max_us_per_candidate": most_us,
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
        "test_looks": clock.counted(LOOKS),
        "rows": {name: len(part) for name, part in task.parts.items()},
        "seconds": round(clock.spent(), 1),
        "leaderboard": board.table(most_us),
    }


def _run(
    task: Task,
    board: Leaderboard,
    clock: Clock,
    last: Artifact | None,
    most_trials: int | None,
    progress: SearchProgress,
) -> tuple[Entry, Mapping[str, Any]]:
    """Rivals, trials and the end: the winner and its manifest; `last` is what it would follow."""

    def measured(network: NetworkConfig) -> float:
        matrix = task.valid.matrix
        return us_per_candidate(task.encoder, network, matrix.numeric, matrix.category)

    costs = Costs(measured, board.entries)
    check_cost(costs, task.most_us)
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
            most_trials=most_trials,
            progress=progress,
        )
        ranking = board.ranking(task.most_us)
        for winner in ranking:
            progress.say(headline(board, winner, task.most_us))
            try:
                return winner, finish(task, board, winner, clock, forecast, last, progress)
            except Diverged as error:
                if winner is ranking[-1]:
                    raise
                progress.say(f"{winner.name} failed on all rows, the next one follows: {error}")
    raise AssertionError("run_trials answers with a network, or not at all")
