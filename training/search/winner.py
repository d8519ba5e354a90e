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
from training.loop import inputs
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

    Without teachers the calibration is that of its trial, on validation rows that the network had not seen. A mean of
    teachers is less sure of itself than each, and what it teaches needs none: a single network's map made it worse
    (RankLens, rows later than all training: ECE 0.0144 in place of 0.0107, logloss 0.4067 of 0.4064). `last` is the
    model that it would follow, which is measured beside it.
    """
    begun = time.perf_counter()
    artifact = clock.out / "artifact"
    if artifact.exists():
        made = load(artifact)
        if json.loads(made.read("evaluation.json"))["search"]["trials"] == len(board.tried()):
            return made.manifest
    before, test = task.before, task.parts["test"]
    encoder = task.encoder_of(before)
    config = Space(len(before)).config(winner.point, replace(task.base, restore_best=False))
    progress.say(f"training {winner.name} on all {len(before):,} rows before the test rows")
    watched = before.take(np.arange(int(len(before) * (1 - WATCHED)), len(before)))
    rows, last_rows = encoded(encoder, before), encoded(encoder, watched)
    if task.num_teachers:
        job = Job(
            clock.out.resolve() / "fit" / f"teachers of {winner.name}", encoder.to_json(), config, len(before)
        )
        given, seen = (inputs(part, encoder, config.network) for part in (rows, last_rows))
        job.save(given, seen, watched.slate)
        labels = distilled(rows, job, config, num_teachers=task.num_teachers, say=progress.say)
        rows = replace(rows, label=labels)
    trained = train(
        rows,
        last_rows,
        encoder,
        config,
        storage=clock.out / "fit",
        progress=progress,
    )
    calibration = UNCALIBRATED
    if not task.num_teachers:
        assert winner.calibration is not None
        calibration = Calibration(*winner.calibration)
    model = Model.of(encoder, config.network, trained.weights, calibration)
    progress.say("measuring it on the test rows, beside its rivals")
    rivals: dict[str, Any] = {kind: make(encoder, before)(test.matrix) for kind, make in RIVALS.items()}
    if last is not None:
        rivals["current"] = score(last.path, test)
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
                "max_us_per_candidate": task.most_us,
                "winner": winner.name,
                "trials": len(board.tried()),
                "leaderboard": board.table(task.most_us),
            },
        },
        manifest={
            "rows": len(before),
            "counts": task.data.counts,
            "position_tau": trained.position_tau,
            "teachers": task.num_teachers,
        },
        begun=begun,
    )
    shutil.rmtree(artifact, ignore_errors=True)
    draft.rename(artifact)
    shutil.rmtree(clock.out / "fit", ignore_errors=True)
    return manifest


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
