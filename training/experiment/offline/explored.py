"""Read exposures in randomised order from a served log, with rewards and an artifact's scores.

In shapes, N is the number of exposures, C of the longest exposure's candidates, and P of the shown
candidates of all exposures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.contract.errors import TabrankError
from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.log.reader import Log, read_log
from serve.log.replay import Replay
from serve.model.artifact import Artifact
from serve.model.scorers import load_scorer
from serve.ranking.utility import Weighings
from training.data.dataset import Progress, recompute_features
from training.data.draws import read_draws
from training.data.labels import Owners
from training.evaluation.counterfactual import Drawn
from training.examination.placements import F64

CUT, OPEN, FORGOTTEN, OUTSIDE = "cut", "open", "before_snapshot", "outside"


@dataclass(frozen=True)
class Explored:
    """N drawn exposures with the artifact's `score` `[N, C]` in the order shown; NaN is padding.

    The score is the utility by the surface's weights. If there is one outcome of weight 1, that is
    its probability. `about` is plain data for JSON:

    * `within_ms`: the window of the primary outcome, whose event is the reward.
    * `served_versions`: the number of exposures by the version whose scores the order was drawn
      from.
    * `seen_in_training`: how many exposures are from the artifact's training period.
    * `rules`: the rules of the arms in words, which drawn orders do not apply.
    * `pinned_candidates`: how many candidates have a place that the request chose.
    * `left_out`: how many drawn exposures cannot be used. `cut`: the request's limit hid
      candidates. `open`: the event may still come. `before_snapshot`: the features cannot be
      recomputed. `outside`: a known viewer outside of the experiment, such as a tester, or before
      its start or after its end.
    """

    drawn: Drawn
    score: F64
    is_probability: bool
    about: dict[str, Any]


def explored(
    folder: Path, artifact: Artifact, surface: Surface, progress: Progress = lambda share: None
) -> Explored:
    """Read a served log and score its explored exposures.

    Raises:
        TabrankError: the log is invalid, the surface does not have the artifact's features, the log
            has no propensities, or no exposure can be used.
    """
    features = Features(Schema(surface))
    artifact.encoder.check(features.columns)
    log = read_log(folder, surface)
    draws = read_draws(folder, log)
    if not draws:
        raise TabrankError(
            f"{folder}: no exposure of live traffic has propensities, so no order was drawn at random and another "
            "ranking cannot be evaluated; set `explore` for the arm in cluster.yaml, and use the log served after that"
        )
    replay = Replay(features.schema, log)
    within_ms = surface.primary.within_ms
    open_ms = log.ends_ms - within_ms
    why: dict[int, str] = {}
    for i, draw in draws.items():
        if draw.is_outside:
            why[i] = OUTSIDE
        elif replay.before_snapshot[i]:
            why[i] = FORGOTTEN
        elif replay.exposure_ms[i] > open_ms:
            why[i] = OPEN
        elif draw.is_cut:
            why[i] = CUT
    left_out = {CUT: 0, OPEN: 0, FORGOTTEN: 0, OUTSIDE: 0} | Counter(why.values())
    used = np.array([i for i in draws if i not in why], np.int64)
    # An exposure that represents several occurs as often.
    rows = np.repeat(used, log.exposures["one_in"].to_numpy()[used])
    if not len(rows):
        raise TabrankError(
            f"{folder}: none of the {len(draws)} exposures with a drawn order can be used ("
            + ", ".join(f"{name} {num}" for name, num in left_out.items())
            + "); rank viewers of the experiment without a limit, and wait until the event's window has passed"
        )
    lengths = np.diff(replay.first)[rows]
    is_shown = np.arange(lengths.max()) < lengths[:, None]
    # [N, C], the index of each shown candidate. Padding has the index of a value after the last
    # one.
    at = np.where(is_shown, replay.first[rows][:, None] + np.arange(lengths.max()), len(replay.shown))
    weight = np.full(is_shown.shape, -np.inf)
    weight[is_shown] = np.concatenate([draws[i].weight for i in rows.tolist()])
    reward = np.append(_earned(replay, log, surface.primary.event, within_ms), 0.0)[at]
    viewer = replay.exposure_viewer[rows]
    scores = np.full(len(replay.shown) + 1, np.nan)
    scorer, weighing = load_scorer(artifact.path, "onnx"), Weighings(surface).of({}, artifact)
    for done, (i, matrix) in enumerate(recompute_features(features, log, replay, used), 1):
        shares = scorer.score(matrix.numeric, matrix.category)
        scores[replay.first[i] : replay.first[i + 1]] = weighing.utility(shares)
        progress(done / len(used))
    taken = [draws[i] for i in used.tolist()]
    about = {
        "within_ms": within_ms,
        "served_versions": Counter(draw.model for draw in taken),
        "rules": sorted({rule for draw in taken for rule in draw.rules}),
        "pinned_candidates": sum(draw.num_pinned for draw in taken),
        "left_out": left_out,
        "seen_in_training": int((replay.exposure_ms[used] <= artifact.manifest["seen_until_ms"]).sum()),
    }
    cluster = np.where(viewer > 0, viewer, -1 - rows)
    return Explored(Drawn(weight, reward, cluster), scores[at], weighing.is_share, about)


def _earned(replay: Replay, log: Log, event: str, within_ms: int) -> F64:
    """Return `[P]` 1 where the event followed within its window, else 0."""
    owners = Owners.in_replay(replay, log)
    shown_ms = np.repeat(replay.exposure_ms, np.diff(replay.first))
    events = np.flatnonzero(replay.event_kind == event)
    at = owners.of(events, np.arange(len(replay.shown)), shown_ms, within_ms)
    return np.isin(np.arange(len(replay.shown)), at).astype(np.float64)
