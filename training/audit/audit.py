"""Audit a service: compare the features that rankings were served with to those of its log.

In shapes, R is the number of shown rows, F of numeric columns and K of category columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import Schema
from serve.features.slots import F32, F64
from serve.features.surface import Surface
from serve.log.predictions import predictions
from serve.log.reader import Log, read_log, read_table
from serve.log.replay import Replay
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from serve.report.rows import columns as aligned
from training.data.dataset import Progress, recompute_features
from training.evaluation.drift import SCORES, STATISTICS, drift, reading
from training.evaluation.evaluate import score

# Largest accepted difference of a feature; above 1 it is relative. A difference arises because
# float64 sums are added up in another order and then cast to float32.
TOLERANCE = 1e-6
# Largest accepted difference of a score. It is the same as for an artifact's golden rows.
SCORE_TOLERANCE = 1e-5
# What a service logs of a ranking, besides what `read_log` reads.
COLUMNS = ("seq", "model", "surface", "scores", "predictions", "weights", "numeric", "category")


@dataclass(frozen=True)
class Served:
    """An exposure with logged features; its rows are in the order shown."""

    # Index in the log.
    exposure: int
    matrix: Matrix
    # [R, O], in units; NaN where unscored
    predictions: F64
    model: str | None
    is_test: bool


def audit(
    folder: Path, surface: Surface, model: Path | None = None, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Recompute the features of every exposure that has logged ones, and compare them.

    With `model`, the scores of that artifact are compared too, and drift is measured.

    Returns:
        A mapping with these keys.

        - `exposures`, `rows`: how many were compared; `test_exposures` of them are test traffic.
        - `erased_rows`: rows whose gauges and friends were not compared, because these features
          counted viewers who were erased since.
        - `before_snapshot`: exposures that cannot be compared, because the records before them were
          deleted from the log.
        - `other_surface`: exposures with the features of another surface.
        - `features`: the largest `difference` of each feature; null means infinite.
        - `max`, `worst`: the largest of all differences, and the row that has it.
        - `held`: whether all differences are within the tolerances.
        - `model`, `drift`: only with a model. If `drift` is null, `no_drift` says why. Its
          `not_judged` lists what had too few rows.

    Raises:
        TabrankError: the log or the artifact is invalid, or the log is of another surface or has no
            logged features.
    """
    artifact = None if model is None else load_artifact(model)
    features = Features(Schema(surface))
    if artifact is not None:
        artifact.encoder.check(features.columns)
    log = read_log(folder, surface, test_traffic=True)
    replay = Replay(features.schema, log)
    # The service gives unknown candidates no score, and the model was not trained on such rows.
    are_left_out = artifact is not None and surface.unknown_candidates == "last"
    unknown = replay.unknown() if are_left_out else np.zeros(len(replay.shown), bool)
    logged, num_other = _served(folder, log, features.columns, surface.short_fingerprint)
    served = [one for one in logged if not replay.before_snapshot[one.exposure]]
    if not served:
        raise TabrankError(
            f"{folder}: all exposures with logged features were ranked before the snapshot at the beginning of the "
            "log; older records were deleted: audit the log again when it has newer exposures"
        )
    columns = features.columns
    # The feature of each column. A set has several columns.
    parts = columns.category_parts()
    names = [*columns.numeric, *(name for name, part in parts for _ in range(part.start, part.stop))]
    # These features count viewers, so an erased viewer is missing from the candidates' rows.
    forget = np.array([any(slot.forgets for slot in surface.features[name].slots) for name in names])
    erased = pc.unique(log.events["candidate"].filter(log.events["erased"]))
    is_erased = pc.is_in(pc.list_flatten(log.exposures["candidates"]), erased).to_numpy()
    erased_rows = 0
    # Largest difference of each feature, with its exposure and row.
    most = dict.fromkeys(names, (0.0, 0, 0))
    at = {one.exposure: one.matrix for one in served}
    recomputed = recompute_features(features, log, replay, np.array(list(at)))
    for done, (exposure, ours) in enumerate(recomputed, 1):
        differs = np.where(at[exposure].category != ours.category, np.inf, 0.0)
        far = np.concatenate([difference(at[exposure].numeric, ours.numeric), differs], axis=1)
        rows = is_erased[replay.first[exposure] : replay.first[exposure + 1]]
        far[np.outer(rows, forget)] = 0.0
        erased_rows += int(rows.sum()) * bool(forget.any())
        for name, column in zip(names, far.T, strict=True):
            if column.max(initial=0.0) > most[name][0]:
                most[name] = float(column.max()), exposure, int(column.argmax())
        progress(done / len(served))
    worst = max(most, key=lambda name: most[name][0])
    largest, exposure, row = most[worst]
    where = None
    if largest:
        shown, ids = log.exposures["candidates"][exposure], log.exposures["request_id"]
        where = {"feature": worst, "request_id": ids[exposure].as_py(), "candidate": shown[row].as_py()}
    result: dict[str, Any] = {
        "exposures": len(served),
        "test_exposures": sum(one.is_test for one in served),
        "before_snapshot": len(logged) - len(served),
        "other_surface": num_other,
        "rows": sum(len(one.predictions) for one in served),
        "erased_rows": erased_rows,
        "features": {name: _finite(value) for name, (value, *_) in most.items()},
        "max": _finite(largest),
        "worst": where,
        "held": largest <= TOLERANCE,
    }
    if artifact is not None:
        rows = [np.arange(*replay.first[one.exposure : one.exposure + 2]) for one in served]
        result |= _against(artifact, surface, columns, served, ~unknown[np.concatenate(rows)])
        result["held"] &= (result["model"]["max_difference"] or 0.0) <= SCORE_TOLERANCE
    return result


def difference(served: F32, ours: F32) -> F64:
    """Return |served − ours| / max(1, |ours|).

    Two missing values differ by 0; a missing value differs from a number by infinity.
    """
    same = (served == ours) | (np.isnan(served) & np.isnan(ours))
    with np.errstate(invalid="ignore"):
        far = np.abs(served - ours.astype(np.float64)) / np.maximum(1.0, np.abs(ours))
    return np.where(same, 0.0, np.where(np.isnan(far), np.inf, far))


def table(result: Mapping[str, Any]) -> str:
    """Return the result of `audit` as text. The features that differ most come first."""
    moved = result.get("drift")
    tests = f"{result['test_exposures']} of them test"
    others = f"{result['other_surface']} others are of another surface"
    rows = [["feature", "difference", *["drift"] * bool(moved)]]
    for name, most in sorted(result["features"].items(), key=lambda item: -_infinite(item[1])):
        rows.append([name, f"{_infinite(most):10.1e}"])
        if moved:
            rows[-1].append(_drift(moved, name, moved["features"][name]))
    if moved:
        rows.append([SCORES, "", _drift(moved, SCORES, moved["score"])])
    lines = [f"{result['rows']} rows of {result['exposures']} exposures ({tests}; {others})", aligned(rows)]
    if moved and moved["not_judged"]:
        lines.append(
            f"drift: {len(moved['not_judged'])} are not judged: audit again with more rankings, or raise log_features"
        )
    if result.get("model"):
        ours = result["model"]
        most = "–" if ours["max_difference"] is None else f"{ours['max_difference']:.1e}"
        lines.append(f"scores of {ours['version']}: {ours['rows']} rows, difference {most}")
    if result.get("no_drift"):
        lines.append(f"no drift: {result['no_drift']}")
    if where := result["worst"]:
        lines.append("the most: {feature} of candidate {candidate} in ranking {request_id}".format(**where))
    if rows := result["erased_rows"]:
        lines.append(f"gauges and friends of {rows} rows were not compared: they counted erased viewers")
    if result["held"]:
        return "\n".join([*lines, "held: the served features equal those of the log"])
    why = "served features or scores differ from the log's; does the log hold all that the store was filled from?"
    return "\n".join([*lines, f"NOT held: {why}"])


def _drift(found: Mapping[str, Any], name: str, index: float | None) -> str:
    """Return the drift of a feature or of the scores in words."""
    if index is not None:
        return f"{index:.3f}  {reading(index)}"
    enough = found["not_judged"][name]
    why = "{rows} of {needed} rows" if enough["needed"] else "the model has too few training rows"
    return f"    –  not judged: {why.format(**enough)}"


def _infinite(value: float | None) -> float:
    return np.inf if value is None else value


def _served(folder: Path, log: Log, columns: Columns, surface: str) -> tuple[list[Served], int]:
    """Return the exposures with features of this surface, in order, and the number of others."""
    _, logged = read_table(folder, "exposures", ("request_id", *COLUMNS))
    has_features = set(COLUMNS) <= set(logged.column_names)
    if not has_features or not len(logged := logged.filter(pc.is_valid(logged["numeric"]))):
        raise TabrankError(
            f"{folder}: no exposure has logged features; set log_features in the user_config of FeatureFetch above 0 "
            "(1.0 logs them for all rankings), serve, and audit the log that the service then writes"
        )
    num_logged = len(logged)
    logged = logged.filter(pc.equal(logged["surface"], surface))
    if not len(logged):
        raise TabrankError(
            f"{folder}: all exposures with logged features were served with other surfaces than this one "
            f"({surface}); name the surface with which they were served"
        )
    place = {seq: i for i, seq in enumerate(logged["seq"].to_pylist())}
    lengths = pc.list_value_length(log.exposures["candidates"]).to_pylist()
    traffic = log.exposures["traffic"].to_pylist()
    served = []
    for exposure, seq in enumerate(log.exposures["seq"].to_pylist()):
        if seq not in place or seq is None:
            continue
        row = {name: logged[name][place[seq]] for name in logged.column_names}
        numeric, category, scores = (
            row[name].values.to_numpy(zero_copy_only=False).astype(kind)
            for name, kind in (("numeric", np.float32), ("category", np.uint64), ("scores", np.float32))
        )
        num_rows = lengths[exposure]
        shapes = (num_rows, len(columns.numeric)), (num_rows, columns.num_category)
        if (len(numeric), len(category)) != tuple(map(math.prod, shapes)):
            name = log.exposures["request_id"][exposure].as_py()
            raise TabrankError(f"{folder}: exposure {name!r} has features of another surface; name that one")
        matrix = Matrix(numeric.reshape(shapes[0]), category.reshape(shapes[1]))
        given, weights = row["predictions"].as_py(), json.loads(row["weights"].as_py() or "{}")
        amounts = predictions(scores, given and np.array(given, np.float32), weights)
        served.append(Served(exposure, matrix, amounts, row["model"].as_py(), traffic[exposure] == "test"))
    return served, num_logged - len(logged)


def _against(
    artifact: Artifact,
    surface: Surface,
    columns: Columns,
    served: Sequence[Served],
    is_known: NDArray[np.bool_],
) -> dict[str, Any]:
    """Compare the logged predictions of the artifact's version with its present ones, and drift.

    Drift is measured on the rows `is_known` `[R]` of live traffic. The scores among it are
    utilities by the surface's weights, whatever weights were served.
    """
    matrix, outcomes = Matrix.stacked([one.matrix for one in served]), artifact.outcomes
    shares, scales = score(artifact.path, matrix), np.array(list(outcomes.values()))
    lengths = [len(one.predictions) for one in served]
    logged = np.full(shares.shape, np.nan)
    for one, end in zip(served, np.cumsum(lengths), strict=True):
        if one.model == artifact.version and one.predictions.shape[1] == len(outcomes):
            logged[end - len(one.predictions) : end] = one.predictions / scales
    is_mine = ~np.isnan(logged).any(axis=1)
    ours = shares @ (scales * [surface.worth.get(name, 0.0) for name in outcomes])
    found: dict[str, Any] = {
        "version": artifact.version,
        "rows": int(is_mine.sum()),
        "max_difference": float(np.abs(logged - shares)[is_mine].max()) if is_mine.any() else None,
    }
    is_live = np.repeat([not one.is_test for one in served], lengths) & is_known
    if not is_live.any():
        why = "all rows with features are of test traffic, which does not represent viewers, or of unknown candidates"
        return {"model": found, "drift": None, "no_drift": why}
    made_from = json.loads(artifact.read("evaluation.json"))[STATISTICS]
    ranking = np.repeat(np.arange(len(served)), lengths)[is_live]
    return {"model": found, "drift": drift(made_from, columns, matrix.rows(is_live), ours[is_live], ranking)}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
