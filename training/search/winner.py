"""The winner of a search: it is trained again on all rows before the test rows, measured once, and written."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from serve.model.artifact import Artifact, load
from serve.model.encoder import Encoder
from serve.model.graph import Calibration
from training.data.dataset import Dataset
from training.data.prepare import encoded, evenly
from training.evaluation.evaluate import score
from training.evaluation.rivals import RIVALS
from training.fit.fit import save
from training.fit.loop import FitConfig
from training.fit.trainer import Trained, train
from training.network.inputs import inputs
from training.network.model import UNCALIBRATED, Model
from training.search.budget import WATCHED, Clock, Ending, Forecast
from training.search.distil import distilled
from training.search.leaderboard import Entry, Leaderboard
from training.search.progress import SearchProgress
from training.search.space import Space
from training.search.task import Task

LOOKS = "test_looks"
"""Under this name the clock counts how often test rows were measured on: each look makes the next worth less."""


def finish(
    task: Task,
    board: Leaderboard,
    winner: Entry,
    clock: Clock,
    forecast: Forecast,
    last: Artifact | None,
    progress: SearchProgress,
) -> Mapping[str, Any]:
    """Writes the winner to the artifact in the search's folder, unless that is it already; the manifest.

    `last` is the model that it would follow, measured beside it where it was trained on earlier rows alone.

    Raises:
        Diverged: the training diverges on these rows.
    """
    begun = time.perf_counter()
    artifact = clock.out / "artifact"
    stands_for = {
        "winner": winner.name,
        "config": winner.point,
        "asked_teachers": task.num_teachers,
        "follows": last.version if last else None,
    }
    if artifact.exists():
        made = load(artifact)
        found = json.loads(made.read("evaluation.json"))["search"]
        # Trials that were added and changed nothing are no reason for another look at the test rows.
        if all(found.get(name) == value for name, value in stands_for.items()):
            return made.manifest
    ending = _ending(winner, clock, forecast, progress)
    rows = task.before.take(slice(len(task.before) - ending.num_rows, None))
    encoder, test = task.encoder_of(rows), task.parts["test"]
    point = winner.point | {"epochs": ending.epochs}
    config = Space.config(point, replace(task.base, restore_best=False))
    trained = _trained(task, winner, ending, config, rows, encoder, clock.out / "fit", progress)
    calibration = _calibration(task, winner, ending.num_teachers)
    model = Model.of(encoder, config.network, trained.weights, calibration)
    progress.say("measuring it on the test rows, beside its rivals")
    looks = clock.count(LOOKS)
    rivals: dict[str, Any] = {kind: make(encoder, rows)(test.matrix) for kind, make in RIVALS.items()}
    if last is not None and _is_earlier(last, test.ts_ms[0]):
        rivals["current"] = score(last.path, test.matrix)
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
        seen=evenly(rows.matrix),
        rivals=rivals,
        about={
            "history": winner.history,
            "best_epoch": len(winner.history),
            "search": {
                "headline": headline(board, winner, task.most_us),
                "budget_s": clock.budget_s,
                "leaderboard": board.table(task.most_us),
                "max_us_per_candidate": task.most_us,
                "test_looks": looks,
                **stands_for,
            },
        },
        manifest={
            "rows": len(rows),
            "span_ms": [int(rows.ts_ms[0]), int(rows.ts_ms[-1])],
            "seen_until_ms": int(rows.ts_ms[-1]),
            "counts": task.data.counts,
            "position_tau": trained.position_tau,
            "teachers": ending.num_teachers,
        },
        begun=begun,
    )
    shutil.rmtree(artifact, ignore_errors=True)
    draft.rename(artifact)
    shutil.rmtree(clock.out / "fit", ignore_errors=True)
    return manifest


def _ending(winner: Entry, clock: Clock, forecast: Forecast, progress: SearchProgress) -> Ending:
    """What the time that is left allows; a killed end goes on as it was begun."""
    whole = forecast.whole(winner)
    allowed = forecast.within(winner, clock.left())
    ending = Ending(**clock.keep(f"end of {winner.name}, {whole.num_teachers} asked", asdict(allowed)))
    if ending != whole:
        progress.say(ending.falls_short_of(whole))
    over_s = forecast.seconds(winner, ending) - clock.left()
    if over_s > 0.05 * clock.budget_s:
        progress.say(f"the budget is too small: the least that gives a model takes about {over_s:.0f} s more")
    return ending


def _trained(
    task: Task,
    winner: Entry,
    ending: Ending,
    config: FitConfig,
    data: Dataset,
    encoder: Encoder,
    storage: Path,
    progress: SearchProgress,
) -> Trained:
    """The winner's network, trained on `data` and what its teachers say of it; `storage` holds a killed training."""
    progress.say(
        f"training {winner.name} on {len(data):,} of the {len(task.before):,} rows before the test rows"
    )
    watched = data.take(slice(int(len(data) * (1 - WATCHED)), None))
    rows, last_rows = encoded(encoder, data), encoded(encoder, watched)
    if ending.num_teachers:
        folder = storage.resolve() / f"teachers of {winner.name}, {ending.epochs} x {ending.num_rows}"
        for name, part in (("train", rows), ("valid", last_rows)):
            inputs(part, encoder, config.network).save(folder, name)
        label = distilled(
            rows.label, folder, encoder, config, num_teachers=ending.num_teachers, say=progress.say
        )
        rows = replace(rows, label=label)
    return train(rows, last_rows, encoder, config, storage=storage, progress=progress)


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
