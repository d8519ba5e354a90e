"""The end of a search: its winner trained again on all rows before the test rows, measured once, and written."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from serve.artifact import Artifact, load
from serve.graph import Calibration
from training.evaluation.evaluate import score
from training.fit import save
from training.loop import FitConfig, inputs
from training.model import UNCALIBRATED, Model
from training.prepare import encoded
from training.rivals import RIVALS
from training.search.clock import Clock
from training.search.distil import distilled
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.space import Space
from training.search.task import Task
from training.search.trial import Job
from training.search.trials import reserve_s
from training.trainer import train

WATCHED = 0.1
"""Of the rows that it is trained on, the last share shows the training that it goes on well."""


def finish(
    task: Task,
    board: Leaderboard,
    winner: Entry,
    clock: Clock,
    last: Artifact | None,
    progress: SearchProgress,
) -> Mapping[str, Any]:
    """Writes the winner to the artifact in the search's folder, unless that is it already; the manifest.

    `last` is the model that it would follow, measured beside it where it was trained on earlier rows alone.

    Raises:
        TabrankError: the training diverges on these rows.
    """
    begun = time.perf_counter()
    artifact = clock.out / "artifact"
    stands_for = {
        "winner": winner.name,
        "trials": len(board.tried()),
        "max_us_per_candidate": task.most_us,
        "asked_teachers": task.num_teachers,
        "follows": last.version if last else None,
    }
    if artifact.exists():
        made = load(artifact)
        found = json.loads(made.read("evaluation.json"))["search"]
        if last and last.version == made.version:  # it was published, and follows what it followed then
            stands_for["follows"] = found["follows"]
        if all(found.get(name) == value for name, value in stands_for.items()):
            return made.manifest
    before, test = task.before, task.parts["test"]
    encoder = task.encoder_of(before)
    config = _config(task, winner, len(before))
    num_teachers = _affordable(task, board, winner, clock)
    if num_teachers < task.num_teachers:
        progress.say(f"the budget leaves time for {num_teachers} of {task.num_teachers} teachers")
    progress.say(f"training {winner.name} on all {len(before):,} rows before the test rows")
    watched = before.take(np.arange(int(len(before) * (1 - WATCHED)), len(before)))
    rows, last_rows = encoded(encoder, before), encoded(encoder, watched)
    if num_teachers:
        folder = clock.out.resolve() / "fit" / f"teachers of {winner.name}"
        job = Job(folder, encoder.to_json(), config, len(before))
        given, seen = (inputs(part, encoder, config.network) for part in (rows, last_rows))
        job.save(given, seen, watched.slate)
        labels = distilled(rows, job, config, num_teachers=num_teachers, say=progress.say)
        rows = replace(rows, label=labels)
    trained = train(rows, last_rows, encoder, config, storage=clock.out / "fit", progress=progress)
    calibration = _calibration(task, winner, num_teachers)
    model = Model.of(encoder, config.network, trained.weights, calibration)
    progress.say("measuring it on the test rows, beside its rivals")
    rivals: dict[str, Any] = {kind: make(encoder, before)(test.matrix) for kind, make in RIVALS.items()}
    if last is not None and _is_earlier(last, test.ts_ms[0]):
        rivals["current"] = score(last.path, test)
    elif last is not None:
        progress.say(f"the current model {last.version} has seen some of the test rows: it is not compared")
    draft = clock.out / "artifact.new"
    shutil.rmtree(draft, ignore_errors=True)
    manifest = save(
        draft,
        task.schema,
        model,
        config,
        test,
        "test",
        rivals=rivals,
        about={
            "history": winner.history,
            "best_epoch": len(winner.history),
            "search": {
                "headline": headline(board, winner, task.most_us),
                "budget_s": clock.budget_s,
                "leaderboard": board.table(task.most_us),
                **stands_for,
            },
        },
        manifest={
            "rows": len(before),
            "span_ms": [int(before.ts_ms[0]), int(before.ts_ms[-1])],
            "seen_until_ms": int(before.ts_ms[-1]),
            "counts": task.data.counts,
            "position_tau": trained.position_tau,
            "teachers": num_teachers,
        },
        begun=begun,
    )
    shutil.rmtree(artifact, ignore_errors=True)
    draft.rename(artifact)
    shutil.rmtree(clock.out / "fit", ignore_errors=True)
    return manifest


def _config(task: Task, winner: Entry, num_rows: int) -> FitConfig:
    """The winner's configuration; on more rows than its trial saw it needs no more epochs than their space has."""
    space = Space(num_rows)
    most = space.distributions["epochs"].high  # type: ignore[attr-defined]
    point = winner.point | {"epochs": min(winner.point["epochs"], most)}
    return space.config(point, replace(task.base, restore_best=False))


def _affordable(task: Task, board: Leaderboard, winner: Entry, clock: Clock) -> int:
    """How many teachers the rest of the budget allows: those asked for, or fewer."""
    scale = len(task.before) / clock.keep("trial_rows", len(task.parts["training"]))
    left = clock.budget_s - clock.spent()
    for num in range(task.num_teachers, 0, -1):
        if reserve_s(board, task, winner, max(scale, 1.0), num) <= max(left, clock.budget_s / 2):
            return num
    return 0


def _calibration(task: Task, winner: Entry, num_teachers: int) -> Calibration:
    """That of the winner's trial, on validation rows that its network had not seen; or none.

    A mean of teachers is less sure of itself than each, and what it teaches needs none: a single network's map made
    it worse (RankLens, rows later than all training: ECE 0.0144 in place of 0.0107, logloss 0.4067 of 0.4064). A
    network that makes up for positions answers as for the first one, and the map brings it back to what is shown.
    """
    if num_teachers and task.base.position_bias == "ignored":
        return UNCALIBRATED
    assert winner.calibration is not None
    return Calibration(*winner.calibration)


def _is_earlier(last: Artifact, first_ms: int) -> bool:
    """Whether a model has seen rows from before a time alone, as far as it says."""
    seen_until_ms = last.manifest.get("seen_until_ms")
    return seen_until_ms is not None and int(seen_until_ms) < first_ms


def headline(board: Leaderboard, winner: Entry, most_us: float | None) -> str:
    """Who leads the leaderboard; a rival that does comes first."""
    best = board.best_rival()
    within = f" within {most_us:g} µs a candidate" if most_us is not None else ""
    point = winner.point
    ours = f"{winner.name} ({point['width']} wide, {point['n_steps']} steps, {point['mask_type']}"
    ours += f", {winner.us_per_candidate:.1f} µs a candidate)"
    if best.logloss < winner.logloss:
        return (
            f"{best.name} leads the leaderboard: validation logloss {best.logloss:.4f} against "
            f"{winner.logloss:.4f} of the best network{within}, {ours}."
        )
    return (
        f"{ours} leads the leaderboard: validation logloss {winner.logloss:.4f} against "
        f"{best.logloss:.4f} of the best rival, {best.name}."
    )
