"""Evaluate an artifact on a log, and on the same rows the popular order and the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.contract.validation import one_of
from serve.features.kinds.counters import Rate
from serve.features.matrix import Matrix
from serve.features.registry import KINDS
from serve.features.rows import Schema
from serve.features.surface import Surface, read_surface
from serve.log.reader import read_log
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from serve.model.encoder import Encoder
from serve.model.scorers import load_scorer
from training.data.dataset import Dataset, Progress, build, kept_evenly
from training.data.draws import drawn_weights
from training.data.encoding import category_strings
from training.evaluation.metrics import Contender, Values, calibrated, reliability
from training.evaluation.outcomes import is_plain, measured, predicts, utility
from training.evaluation.paired import MARGIN, bounds, outcome_bounds, paired
from training.evaluation.rivals import TUNING_S, trees, tuned
from training.evaluation.slates import Slates
from training.evaluation.slices import segments, slices
from training.evaluation.worth import Worth, expected_amounts, odds_of
from training.examination.examination import Examination
from training.terminal import print_progress

# Score this many rows at once, which bounds the memory.
CHUNK = 4_096
# Measure at most this many rows, which bounds memory and time. With more, intervals would hardly be
# narrower.
MOST_ROWS = 2_000_000
# An encoder without vocabularies. With it, categories are named by their hashes.
NO_NAMES = Encoder(())


def assess(
    data: Dataset,
    shares: Mapping[str, Values],
    surface: Surface,
    *,
    examinations: Sequence[Examination],
    current: Sequence[Examination] | None = None,
    encoder: Encoder = NO_NAMES,
    field: str | None = None,
    strings: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Measure each contender (a model or a rule that orders) on the rows of `data`.

    Args:
        data: the rows. Those that requests pinned are left out, because their places are the same
            in every order.
        shares: predictions `[N, O]` by the contender's name: those of `model`, and of rivals that
            predict too. A prediction is of the share of an outcome's scale if somebody looks at the
            candidate; for an event, it is P(event | looked at). The column of an outcome that a
            contender does not predict is NaN. The contenders `popular` and, if the surface has a
            `[baseline]`, `baseline` are added from the data.
        surface: declares the outcomes and their weights.
        examinations: the examination of positions, one for each outcome.
        current: the same for the contender `current`.
        encoder: names the categories of slices.
        field: a field that `data.fields` holds, such as candidate.topic, to measure by its values.
        strings: spells the field's categories by their hashes.

    A contender orders by its utility, which is the sum of weights times predictions. The gain in
    NDCG@10 is what followed, weighed in the same way. All other measures are of the primary outcome
    on the rows where it is known. They compare labels with predictions *as shown*: the share times
    the examination of the row's position.

    Returns plain data for JSON, where null stands for a measure that the rows do not define:

    * `rows`; `pinned_rows` and `masked_rows`, which are left out (at the latter, the primary
      outcome is not known); `slates` that can be ranked; `positives`; and `span_ms` [first, last].
    * The task: `label`, `popular_feature`, `features` ({name: kind}) and `labels` ({name: words}).
    * `contenders`: their names. Under each name are its measures, of which the first is
      `expected_labels`, or `expected_utility` if there are several outcomes, a weight or an amount.
      `Contender.measures` describes the others.
    * `expected_labels`: the entry of `training.evaluation.expected_labels` for the primary outcome,
      or for an outcome that the rows do not support.
    * `intervals`: {name: {measure: [low, high]}}, 95 % intervals.
    * `paired`: {"model-<rival>": ...}, as `training.evaluation.paired` describes it. The logloss of
      `popular` and `baseline` comes from a calibration that favours them (`metrics.calibrated`).
      The pair with `current` also has `rows`, `margin`, and `bounds`, which include those of
      further outcomes. If the two do not predict the same outcomes, `outcomes` names those that
      both do.
    * `curves`: the model's `reliability`.
    * `slices`, and `segments` if there is a `field`: as `training.evaluation.slices` describes
      them.
    * `outcomes`: as `outcomes.measured` describes it, unless the only outcome is an event of
      weight 1.
    """
    num_rows = len(data)
    if data.pinned is not None:
        shares = {name: share[~data.pinned] for name, share in shares.items()}
        data = data.unpinned()
    examined = dict.fromkeys(shares, examinations)
    if current is not None:
        examined["current"] = current
    primary, orders = data.of(0), {"model": utility(surface, shares["model"]), **data.rules}
    orders |= {name: utility(surface, one) for name, one in shares.items()}
    contenders, fair, predictions = _contenders(data, orders, shares, surface, examined)
    slates = contenders["model"].slates
    scales = {name: outcome.scale for name, outcome in surface.predicted.items()}
    odds = [odds_of(orders, {**shares, **predictions}, k) for k in range(len(scales))]
    earns = expected_amounts(data, orders, scales, examinations, odds)
    by = "expected_labels" if is_plain(surface) else "expected_utility"
    kinds = {cls: kind for kind, cls in KINDS.items()}
    result: dict[str, Any] = {
        "rows": len(primary),
        "pinned_rows": num_rows - len(data),
        "masked_rows": len(data) - len(primary),
        "slates": int(slates.rankable.sum()),
        "positives": int(slates.positives.sum()),
        "span_ms": [int(primary.ts_ms.min()), int(primary.ts_ms.max())],
        "label": {"event": surface.primary.event, "within_ms": surface.primary.within_ms},
        "popular_feature": surface.popular,
        "features": {name: kinds[type(kind)] for name, kind in surface.features.items()},
        "labels": {name: kind.label for name, kind in surface.features.items()},
        "contenders": list(contenders),
        "expected_labels": _support(surface, earns),
        "intervals": {},
        "paired": {},
    }
    is_learned = any(one.source == "learned" for one in examinations)
    for name, contender in contenders.items():
        value = earns.weighed(name, surface.worth)
        ends = value and list(value.interval(earns.cluster))
        result[name] = {by: value and value.value} | contender.measures()
        result["intervals"][name] = {by: ends} | contender.intervals()
        if name != "model":
            more = earns.weighed("model", surface.worth, name)
            gain = more.told(earns.cluster) if more else (None, None)
            rival = fair.get(name, contender)
            pair = paired(contenders["model"], rival, gain, earned=by, is_learned=is_learned)
            result["paired"][f"model-{name}"] = pair
    if by == "expected_utility":
        result["outcomes"] = measured(data, shares, surface, examined, earns, list(contenders))
    if "current" in shares:
        rate = float(primary.label.mean(dtype=np.float64))
        result["paired"]["model-current"] |= _bounded(result, shares["current"], surface, rate)
    given = predictions["model"][~np.isnan(data.outcomes[:, 0]), 0] * examinations[0].at(primary.position)
    result["curves"] = {"reliability": reliability(primary.label, given)}
    both = contenders["model"], contenders["popular"]
    result["slices"] = slices(primary, *both, surface, encoder)
    return result | ({"segments": segments(primary, *both, field, strings or {})} if field else {})


def _contenders(
    data: Dataset,
    orders: Mapping[str, Values],
    shares: Mapping[str, Values],
    surface: Surface,
    examined: Mapping[str, Sequence[Examination]],
) -> tuple[dict[str, Contender], dict[str, Contender], dict[str, Values]]:
    """Return the contenders on the rows where the primary outcome is known, by their names.

    Also returns the rules with probabilities from a calibration that favours them, and the
    predictions `[N, O]` of all that predict the primary outcome.
    """
    known, primary = ~np.isnan(data.outcomes[:, 0]), data.of(0)
    worth = utility(surface, np.nan_to_num(data.outcomes))
    slates = Slates(primary.label, primary.slate, primary.viewer, worth[known])
    predictions = {name: one for name, one in shares.items() if predicts(one)[0]}
    theta = {name: examined[name][0].at(primary.position) for name in predictions}
    if isinstance(surface.features[surface.popular], Rate):
        # The popular rate counts labels as shown, so it is no prediction of a label if looked at.
        predictions["popular"] = np.full(data.outcomes.shape, np.nan)
        predictions["popular"][:, 0] = data.popular
        theta["popular"] = np.ones(len(primary))
    contenders = {}
    for name, order in orders.items():
        share = predictions[name][known, 0] if name in predictions else None
        chance = None if share is None else share * theta[name]
        contenders[name] = Contender.of(slates, order[known], chance, share)
    fair = {}
    for name, rule in data.rules.items():
        chance = calibrated(primary.label, rule[known], theta["model"])
        fair[name] = Contender.of(slates, rule[known], chance)
    return contenders, fair, predictions


def _bounded(result: Mapping[str, Any], current: Values, surface: Surface, rate: float) -> dict[str, Any]:
    """Return what an evaluation's pair with the current model has beside that of any rival.

    `current` are its predictions `[N, O]`, and `rate` is the mean label.
    """
    pair = result["paired"]["model-current"]
    limits = bounds(pair, result["model"], result["current"], rate)
    # The bounds of the primary outcome are already there.
    for name, about in list(result.get("outcomes", {}).items())[1:]:
        limits += outcome_bounds(name, about)
    both = np.array(list(surface.predicted))[predicts(current)].tolist()
    found = {"rows": result["rows"], "margin": MARGIN, "bounds": limits}
    return found | ({} if len(both) == len(surface.predicted) else {"outcomes": both})


def _support(surface: Surface, earns: Worth) -> Mapping[str, Any]:
    """Return the support of the primary outcome's estimates, or of an outcome that has none."""
    names = [name for name, weight in surface.worth.items() if weight]
    lacking = next((name for name in names if earns.about[name]["reason"]), None)
    about = earns.about[lacking or names[0]]
    if lacking is None or len(names) == 1:
        return about
    return {**about, "reason": f"{lacking}: {about['reason']}"}


def evaluate(
    model: Path, history: Path | None, log: Path, progress: Progress, *, baselines: bool, by: str | None
) -> dict[str, Any]:
    """Return the result of `assess` for `model`, `popular` and the baseline on the rows of `log`.

    The state starts from the log `history`, and moves on with `log`. With `baselines`, the result
    also has `lightgbm`, which is tuned and trained on the rows of `history` with the same features
    and the model's examination of positions.

    If there are more than `MOST_ROWS` rows, those of evenly spaced exposures are measured, and
    `sampled_from` is the number of all. In the same way, `lightgbm_sampled_from` is the number of
    rows of which LightGBM was trained on a sample.

    Raises:
        TabrankError: the artifact or the log is invalid, `baselines` has no `history`, or the field
            `by` is unknown, a set or a time, or has too many values.
    """
    if baselines and history is None:
        raise TabrankError("--baselines: LightGBM trains on the history; give --history LOG")
    artifact, surface = opened(model)
    suspects = suspects_of(artifact)
    if by:
        one_of(by, surface.grouping, "--by", "field")
    data, about = read_rows(surface, history, log, progress, [by] if by else [])
    examinations = Examination.of(artifact.manifest)
    shares: dict[str, Values] = {"model": score(model, data.matrix)}
    if baselines and history is not None:
        before, of_rival = read_rows(surface, None, history, lambda share: None)
        about |= {f"lightgbm_{name}": value for name, value in of_rival.items()}
        settings = tuned(artifact.encoder, before.of(0), examinations[0], TUNING_S)
        shares["lightgbm"] = trees(artifact.encoder, before, examinations, settings)(data.matrix)
    named = {"encoder": artifact.encoder, "field": by, "strings": about.pop("strings", None)}
    found = assess(data, shares, surface, examinations=examinations, **named)
    return measured_by(artifact, data) | {"suspects": suspects} | about | found


def opened(model: Path) -> tuple[Artifact, Surface]:
    """Return an artifact and its surface."""
    artifact = load_artifact(model)
    return artifact, read_surface((model / "surface.toml").read_text(), str(model / "surface.toml"))


def suspects_of(artifact: Artifact) -> list[str]:
    """Return what must be answered about the columns of an artifact, as its training found it.

    Raises:
        TabrankError: the artifact does not say it, as it was fitted before its training looked.
    """
    if "suspects" not in artifact.manifest:
        raise TabrankError(
            f"{artifact.path}: its manifest does not say whether a column may know the future; fit the model again"
        )
    return list(artifact.manifest["suspects"])


def read_rows(
    surface: Surface,
    history: Path | None,
    log: Path,
    progress: Progress,
    fields: Sequence[str] = (),
    most: int | None = None,
) -> tuple[Dataset, dict[str, Any]]:
    """Return the rows of a log, with the draws of their orders. The state starts from `history`.

    The rows keep the values of `fields`, and the second value spells categories as `strings`.

    If more than `most` candidates were shown (by default `MOST_ROWS`), the rows are those of evenly
    spaced exposures, and the second value holds the number of all as `sampled_from`.
    """
    most = most or MOST_ROWS
    past, rows = read_log(history, surface) if history else None, read_log(log, surface)
    # An exposure that represents several gives rows for each of them.
    lengths = pc.multiply(pc.list_value_length(rows.exposures["candidates"]), rows.exposures["one_in"])
    num_shown = lengths.to_numpy()
    total = int(num_shown.sum())
    about: dict[str, Any] = {"sampled_from": total} if total > most else {}
    kept = kept_evenly(num_shown, most) if about else None
    if about:
        print_progress(f"{log}: using about {most:,} of {total:,} shown candidates, evenly over time")
    weights = drawn_weights(log, rows)
    if fields:
        about["strings"] = category_strings(surface, past or rows) | category_strings(surface, rows)
    given: dict[str, Any] = {"history": past, "weights": weights, "kept": kept}
    return build(Schema(surface), rows, **given, fields=fields, progress=progress), about


def measured_by(artifact: Artifact, data: Dataset) -> dict[str, Any]:
    """Return `version`, `surface`, and how many rows were `rows_seen_in_training`."""
    num_seen = int((data.ts_ms <= artifact.manifest["seen_until_ms"]).sum())
    about = {"version": artifact.version, "surface": artifact.manifest["surface"]}
    return about | {"rows_seen_in_training": num_seen}


def score(model: Path, matrix: Matrix) -> NDArray[np.float32]:
    """Score a matrix's rows with the graph that the service uses, and return shares `[N, O]`."""
    scorer = load_scorer(model, "onnx")
    parts = (matrix.rows(slice(i, i + CHUNK)) for i in range(0, len(matrix.numeric), CHUNK))
    shares = [scorer.score(part.numeric, part.category) for part in parts]
    return np.concatenate(shares) if shares else np.empty((0, len(scorer.outcomes)), np.float32)
