"""Search: from a surface, a log and a budget to the best network that serves within its cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.artifact import Artifact, current, load
from serve.errors import TabrankError
from serve.surface import Surface
from training.evaluation.paired import is_behind
from training.leak import suspects
from training.loop import FitConfig
from training.network import NetworkConfig
from training.publish import check_surface, publish
from training.search.clock import Clock
from training.search.competition import compete
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.task import Task
from training.search.trials import check_cost, run_trials
from training.search.winner import finish, headline
from training.trainer import ray_session


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
    progress: SearchProgress,
) -> dict[str, Any]:
    """Search for `budget_s` seconds and write the winner, measured and reported, to `out`/artifact.

    A search that was killed goes on when it is called again with the same `out`, and loses the trials that were
    under way; `budget_s` is that of all calls together. `most_us` bounds the µs a candidate of what may win;
    `num_teachers` networks like the winner, of other seeds, teach the one that is written (`training.search.distil`).
    `days` leaves out rows that are older than so many days before the log's end (they still make the state).
    `anew` begins again where `out` holds a search that is over, or one of other rows.

    With `models`, the search starts from their current model's configuration, and a winner is published there and
    promoted where it passes: it beats popular by two standard errors, the current model does not beat it so, and no
    feature looks as if it knew the future.

    Raises:
        TabrankError: for a bad log, too little data, an `out` of another search, or a `most_us` that nothing fits.
    """
    if models:
        check_surface(models, surface.name)
    clock = Clock(out, budget_s)
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
    parts = task.parts
    clock.claim(task.identity, anew=anew)
    check_cost(task)
    suspected = [str(suspect) for suspect in suspects(parts["training"])]
    for suspect in suspected:
        progress.say(suspect)
    last = _last(models, task) if models else None
    board = Leaderboard(out / "leaderboard.jsonl")
    compete(board, task.encoder, parts["training"], task.valid, progress.say)
    with ray_session():
        first = [_config(last.manifest, task.base)] if last else []
        run_trials(task, board, clock, first=first, progress=progress)
        winner, manifest = _finished(task, board, clock, last, progress)
    pair = manifest["paired"].get("model-current")
    passed = bool(manifest["gate"]["beats"]) and not (pair and is_behind(pair)) and not suspected
    if models and passed:
        publish(out / "artifact", models)
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
        "published": bool(models and passed),
        "trials": len(board.tried()),
        "rows": {name: len(part) for name, part in parts.items()},
        "seconds": round(clock.spent(), 1),
        "leaderboard": board.table(most_us),
    }


def _finished(
    task: Task, board: Leaderboard, clock: Clock, last: Artifact | None, progress: SearchProgress
) -> tuple[Entry, Mapping[str, Any]]:
    """The winner and its manifest; where one diverges on all its rows, the next of the ranking."""
    ranking = board.ranking(task.most_us)
    for winner in ranking:
        progress.say(headline(board, winner, task.most_us))
        try:
            return winner, finish(task, board, winner, clock, last, progress)
        except TabrankError as error:
            if winner is ranking[-1]:
                raise
            progress.say(f"{winner.name} failed on all rows, the next one follows: {error}")
    raise AssertionError("run_trials answers with a network, or not at all")


def _last(models: Path, task: Task) -> Artifact | None:
    """The current model, where there is one and it is of this surface as it is now."""
    version = current(models)
    if version is None:
        return None
    artifact = load(models / version)
    same = artifact.manifest.get("surface_fingerprint") == task.schema.surface.fingerprint
    return artifact if same else None


def _config(manifest: Mapping[str, Any], base: FitConfig) -> FitConfig:
    """The configuration that an artifact was trained with, its seed and workers aside."""
    own = {name: getattr(base, name) for name in ("seed", "num_workers", "position_bias")}
    return FitConfig(**{**manifest["fit"], **own, "network": NetworkConfig(**manifest["network"])})
