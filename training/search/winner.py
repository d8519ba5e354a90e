"""Winner of a search: final training on all rows before the test rows, evaluation, artifact."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from serve.features.matrix import Matrix
from serve.features.surface import Surface
from serve.model.artifact import Artifact, load
from serve.model.encoder import Encoder
from training.data.dataset import Dataset, sample
from training.evaluation.evaluate import MOST_ROWS, score
from training.evaluation.metrics import Values
from training.evaluation.rivals import TUNING_SHARE, trees
from training.evaluation.slates import Slates
from training.examination.estimate import MIN_VIEWERS
from training.examination.examination import IGNORED, Examination
from training.fit.fit import Fitted, save, with_calibration
from training.fit.loop import FitConfig, State
from training.fit.prepare import encode_rows, take_evenly
from training.fit.teaching import mixed
from training.fit.trainer import train
from training.network.model import Model
from training.search.budget import MONITORED_SHARE, FinalTraining
from training.search.distil import distilled
from training.search.leaderboard import BoardEntry
from training.search.space import Space
from training.search.trials import SearchRun
from training.terminal import PARTS, print_progress

# Name of the counter of evaluations on the test rows. Each one makes the next less trustworthy.
TEST_LOOKS = "test_looks"
# Share of the rows, and how many at most, that calibrate the winner and train nothing: two
# parameters need no more.
HELD_SHARE, MAX_HELD_ROWS = 0.1, 5_000


def finish(run: SearchRun, winner: BoardEntry, last: Artifact | None) -> Mapping[str, Any]:
    """Write the winner to the search's folder, unless it is there already; return the manifest.

    `last` is the incumbent. All measures are of the test rows that it has not seen either, unless
    these are too few to compare (`is_enough`): then they are of all test rows, without `last`.

    Raises:
        Diverged: the training diverges on these rows.
    """
    started_s = time.perf_counter()
    task, out = run.task, run.clock.out
    stands_for = {
        "winner": winner.name,
        "config": winner.point,
        "asked_teachers": task.settings.num_teachers,
        "follows": last.version if last else None,
        "suspects": task.suspects,
    }
    if (out / "artifact").exists():
        made = load(out / "artifact")
        stored = json.loads(made.read("evaluation.json"))["search"]
        # Further trials that changed nothing do not justify another evaluation on the test rows.
        if all(stored.get(name) == value for name, value in stands_for.items()):
            return made.manifest
    size = _size(run, winner)
    newest = task.before.take(slice(len(task.before) - size.num_rows, None))
    rows, held = held_out(newest)
    encoder, test, incumbent = task.encoder_of(rows), task.parts["test"], None
    if last:
        newer = unseen(test, last)
        incumbent = {"version": last.version, "unseen_rows": len(newer), "test_rows": len(test)}
        test, last = (newer, last) if is_enough(newer) else (test, None)
    num_test, test = len(test), sample(test, MOST_ROWS)
    config = Space.config(winner.point | {"epochs": size.epochs}, replace(task.base, restore_best=False))
    boosted = None
    if tuned := run.board.of("lightgbm"):
        PARTS.begin(f"training LightGBM on {len(rows):,} rows")
        boosted = trees(encoder, rows, task.examinations, tuned.point)
    rival = boosted(rows.matrix) if boosted and task.settings.num_teachers else None
    state, num_taught = _trained(run, winner, size, config, rows, encoder, rival)
    model = with_calibration(Model.of(encoder, config.network, state.kept(config)), held, task.examinations)
    PARTS.begin("measuring it on the test rows, beside its rivals")
    rivals: dict[str, Values] = {"lightgbm": boosted(test.matrix)} if boosted else {}
    current = None
    if last:
        rivals["current"], current = predicted(last, test.matrix, task.schema.surface)
    search = {
        "budget_s": run.clock.budget_s,
        "tuning_share": TUNING_SHARE,
        "leaderboard": run.board.table(task.settings.max_us, winner),
        "max_us_per_candidate": task.settings.max_us,
        "test_looks": run.clock.increment(TEST_LOOKS),
        **stands_for,
    }
    draft = out / "artifact.new"
    shutil.rmtree(draft, ignore_errors=True)
    fitted = Fitted(
        task.schema,
        model,
        config,
        test,
        "test",
        seen=take_evenly(rows.matrix),
        begun=started_s,
        examinations=task.examinations,
        rivals=rivals,
        current=current,
        sampled_from=num_test,
        about={"history": winner.history, "best_epoch": len(winner.history), "search": search},
        manifest={
            "log": str(task.log.resolve()),
            "rows": len(rows),
            "span_ms": (int(rows.ts_ms[0]), int(rows.ts_ms[-1])),
            "seen_until_ms": int(newest.ts_ms[-1]),
            "teachers": num_taught + (rival is not None),
            "incumbent": incumbent,
            "suspects": task.suspects,
        },
    )
    manifest = save(fitted, draft)
    shutil.rmtree(out / "artifact", ignore_errors=True)
    draft.rename(out / "artifact")
    shutil.rmtree(out / "fit", ignore_errors=True)
    return manifest


def _size(run: SearchRun, winner: BoardEntry) -> FinalTraining:
    """Return the size of the final training, and say what the budget does not allow."""
    whole, allowed = run.forecast.whole(winner), run.forecast.within(winner, run.clock.left())
    key = f"end of {winner.name}, {whole.num_teachers} asked"
    # A killed training resumes with the same size.
    size = FinalTraining(**run.clock.setdefault(key, asdict(allowed)))
    if size != whole:
        print_progress(size.describe_shortfall(whole))
    return size


def predicted(last: Artifact, matrix: Matrix, surface: Surface) -> tuple[Values, list[Examination]]:
    """Return the shares `[N, O]` of a model and their examinations, by the outcomes of a surface.

    They are NaN for what the model does not predict.
    """
    given, examined = score(last.path, matrix), Examination.of(last.manifest)
    shares = np.full((len(given), len(surface.predicted)), np.nan, given.dtype)
    examinations = [IGNORED] * len(surface.predicted)
    for k, name in enumerate(surface.predicted):
        if name in last.outcomes:
            at = list(last.outcomes).index(name)
            shares[:, k] = given[:, at]
            examinations[k] = examined[at]
    return shares, examinations


def held_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Split rows into those to train on, and all of some viewers, which calibrate what is trained.

    Neither a network nor the teachers of its labels have seen these. The calibration of its trial
    is no substitute: a network that is taught is less confident. A viewer with more rows than may
    be held, such as one id for all guests, is trained on.
    """
    _, number, counts = np.unique(rows.viewer, return_inverse=True, return_counts=True)
    most = min(HELD_SHARE * len(rows), MAX_HELD_ROWS)
    drawn = default_rng(0).permutation(np.flatnonzero(counts <= most))
    is_held = np.isin(number, drawn[np.cumsum(counts[drawn]) <= most])
    return rows.take(np.flatnonzero(~is_held)), rows.take(np.flatnonzero(is_held))


def _trained(
    run: SearchRun,
    winner: BoardEntry,
    size: FinalTraining,
    config: FitConfig,
    data: Dataset,
    encoder: Encoder,
    rival: NDArray[np.float64] | None,
) -> tuple[State, int]:
    """Train the winner's network on `data` and its teachers' labels, those of a `rival` included.

    Also returns how many networks teach. The search's folder holds the state from which a killed
    training resumes.
    """
    PARTS.begin(
        f"training {winner.name} on {len(data):,} of the {len(run.task.before):,} rows before the test rows; "
        "others calibrate it"
    )
    storage = run.clock.out / "fit"
    watched = data.take(slice(int(len(data) * (1 - MONITORED_SHARE)), None))
    rows, last_rows = (encode_rows(encoder, part, run.task.examinations) for part in (data, watched))
    num_taught = 0
    if size.num_teachers or rival is not None:
        folder = storage.resolve() / f"teachers of {winner.name}, {size.epochs} x {size.num_rows}"
        # They are taught too, as the network was in its trial.
        mixed(rows, [], rival).save(folder, "train")
        last_rows.save(folder, "valid")
        rows, num_taught = distilled(rows, folder, encoder, config, size.num_teachers, rival)
    return train(rows, last_rows, encoder, config, storage=storage), num_taught


def unseen(test: Dataset, last: Artifact) -> Dataset:
    """Return the test rows that are newer than all rows that the incumbent has seen."""
    first = np.searchsorted(test.ts_ms, last.manifest["seen_until_ms"], side="right")
    return test.take(slice(int(first), None))


def is_enough(rows: Dataset) -> bool:
    """Return whether enough viewers have a positive that counts to compare two models."""
    rows = rows.of(0)
    slates = Slates(rows.label, rows.slate, rows.viewer)
    counts = slates.rankable if slates.have_order else slates.positives > 0
    return len(np.unique(slates.cluster[counts])) >= MIN_VIEWERS
