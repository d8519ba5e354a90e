"""Search: find the best network for a log within a time budget and a serving cost.

The *incumbent* is the model that is current when a search starts. The winner may replace it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.model.artifact import Artifact, current, load
from serve.model.compatibility import load_for
from training.evaluation.verdict import headline, holds, not_beaten, standing, verdict
from training.fit.loop import Diverged, FitConfig
from training.fit.publish import check_surface, publish
from training.fit.trainer import ray_session
from training.network.network import NetworkConfig
from training.search.budget import Clock, Forecast
from training.search.cost import Costs, us_per_candidate
from training.search.leaderboard import BoardEntry, Leaderboard, compete
from training.search.task import SearchSettings, Task
from training.search.trial import num_at_once
from training.search.trials import SearchRun, check_cost, run_trials
from training.search.winner import TEST_LOOKS, finish, is_enough, unseen
from training.terminal import PARTS, ProgressLines, print_progress


def search(surface: Surface, log: Path, out: Path, settings: SearchSettings) -> dict[str, Any]:
    """Search for `settings.budget_s` seconds, and write the winner with its report to `out`.

    A killed search resumes when it is called again with the same `out`. Only the trials that were
    running are lost.

    With `settings.models`, the search starts from the configuration of the current model there. A
    winner that passes is published there and promoted, which means that it becomes current. If
    another model was made current during the search, the winner is published but not promoted.

    A winner passes if

    - it beats the popular order, and the `[baseline]` if there is one, by two standard errors;
    - it is not worse than the current model by more than 1 %, on rows that neither
      has seen (`training.evaluation.paired.bounds`);
    - no feature looks like target leakage, and no column that may know the future is unanswered.

    The result's `reasons` say why it does not pass.

    Raises:
        TabrankError: the log is bad or has too few rows, `out` belongs to another search, or no
            network fits `settings.max_us`.
    """
    models, max_us = settings.models, settings.max_us
    if models:
        check_surface(models, surface.name)
    with Clock(out, settings.budget_s) as clock:
        PARTS.begin("reading the log and computing features")
        task = Task.read(surface, log, settings, ProgressLines("features"))
        clock.claim(task.identity, restart=settings.restart)
        board = Leaderboard(out / "leaderboard.jsonl")
        follows = clock.setdefault("follows", current(models)) if models else None
        last, why_not = followed(models, follows, task.schema) if models and follows else (None, [])
        if last and not is_enough(unseen(task.parts["test"], last)):
            print_progress(f"too few rows are newer than {last.version} has seen: nothing will replace it")
        for reason in (*why_not, *task.suspects):
            print_progress(reason)
        winner, manifest = _find(task, board, clock, last)
        why_not += [*reasons(manifest), *task.suspects]
        published = promoted = False
        if models is not None and not why_not:
            published, promoted = True, take_place(out / "artifact", models, follows)
        clock.save(over=True)
    evaluation = json.loads(load(out / "artifact").read("evaluation.json"))
    return {
        "headline": headline(evaluation),
        "verdict": verdict(evaluation),
        **{name: evaluation["search"][name] for name in ("winner", "config")},
        "us_per_candidate": winner.us_per_candidate,
        "max_us_per_candidate": max_us,
        "artifact": str(out / "artifact"),
        **{name: manifest[name] for name in ("version", "metrics", "paired", "gate")},
        "suspects": task.suspects,
        "passed": not why_not,
        "reasons": why_not,
        "published": published,
        "promoted": promoted,
        "trials": len(board.tried()),
        "test_looks": clock.setdefault(TEST_LOOKS, 0),
        "rows": {name: len(part) for name, part in task.parts.items()},
        "seconds": round(clock.spent(), 1),
        "leaderboard": board.table(max_us, winner),
    }


def _find(
    task: Task, board: Leaderboard, clock: Clock, last: Artifact | None
) -> tuple[BoardEntry, Mapping[str, Any]]:
    """Run rivals, trials and the final training, and return the winner and its manifest.

    `last` is the incumbent.
    """
    max_us = task.settings.max_us
    print_progress(task.examinations[0].describe())
    matrix, num = task.valid.matrix, len(task.examinations)
    costs = Costs(partial(us_per_candidate, task.encoder, matrix=matrix, num_outcomes=num), board.tried())
    check_cost(costs, max_us)
    compete(board, task, clock.budget_s)
    first = configuration(last.manifest) if last else []
    with ray_session():
        num_rows, num_test = len(task.before), len(task.parts["test"])
        forecast = Forecast(board, num_rows, num_test, task.settings.num_teachers, num_at_once())
        run = SearchRun(task, board, clock, forecast)
        PARTS.begin("trying networks")
        run_trials(run, costs, first)
        ranking = board.ranking(max_us)
        for winner in ranking:
            print_progress(f"{winner.name} leads the networks: validation logloss {winner.logloss:.4f}")
            try:
                return winner, finish(run, winner, last)
            except Diverged as error:
                if winner is ranking[-1]:
                    raise
                print_progress(f"{winner.name} failed on all rows, the next best follows: {error}")
    raise AssertionError("run_trials answers with a network, or not at all")


def followed(models: Path, version: str, schema: Schema) -> tuple[Artifact | None, list[str]]:
    """Load a version's model, or return None and the reason why nothing can be compared with it."""
    try:
        last = load_for(models / version, Features(schema), may_lack_outcomes=True)
        if not last.outcomes.keys() & schema.surface.predicted.keys():
            theirs, ours = (", ".join(each) for each in (last.outcomes, schema.surface.predicted))
            raise TabrankError(f"it predicts {theirs}, and the surface weighs {ours}")
        return last, []
    except TabrankError as error:
        return None, [
            f"the current model {version} cannot rank with this surface, so nothing is compared with it: {error}; "
            "if the service has this surface, run `python -m training publish` by hand"
        ]


def configuration(manifest: Mapping[str, Any]) -> list[FitConfig]:
    """Return the configuration with which a model was trained, or [] if this release refuses it.

    Trials replace its seed and its number of workers by those of the search.
    """
    try:
        return [FitConfig(**manifest["fit"], network=NetworkConfig(**manifest["network"]))]
    except (TabrankError, TypeError) as error:
        print_progress(f"the search does not start from {manifest['version']} of another release: {error}")
        return []


def reasons(manifest: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a winner does not pass. There are none if it passes."""
    found = not_beaten(manifest["paired"])
    pair, incumbent = manifest["paired"].get("model-current"), manifest.get("incumbent")
    if pair and not holds(pair):
        found.append(standing(pair))
    if incumbent and not pair:
        found.append(
            f"only {incumbent['unseen_rows']:,} of {incumbent['test_rows']:,} test rows are newer than the "
            f"current model {incumbent['version']} has seen, too few to compare: wait for newer rows, or run "
            "`python -m training publish` by hand"
        )
    return found


def take_place(artifact: Path, models: Path, follows: str | None) -> bool:
    """Publish a winner, and return whether it is now the current model.

    The winner becomes current only if the version `follows` still is. If a person made another
    version current while the search ran, that one stays current.
    """
    now = current(models)
    takes = now in (follows, load(artifact).version)
    version = publish(artifact, models, make_current=takes)
    if not takes:
        print_progress(f"{models}: {now} became current meanwhile and stays current; published {version}")
    return takes
