"""The audit: the features that rankings were made with, held against those that the log gives.

R rows shown, F numeric and K category columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import Surface
from serve.log.reader import Log, read_log, read_table
from serve.log.replay import Replay
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from training.data.dataset import Progress
from training.data.feature_replay import recomputed
from training.evaluation.drift import STATISTICS, drift, reading
from training.evaluation.evaluate import score

TOLERANCE = 1e-6
"""By how much a feature may differ, relative above 1: sums of float64 in another order, cast to float32 once."""
SCORE_TOLERANCE = 1e-5
"""By how much a score may differ, as golden scores may."""
COLUMNS = ("seq", "model", "scores", "numeric", "category")

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """One exposure whose matrix was logged, its rows as shown."""

    exposure: int  # its place in the log
    matrix: Matrix
    scores: F32  # [R], NaN where unscored
    model: str | None
    is_test: bool


def audit(
    folder: Path, surface: Surface, model: Path | None = None, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Compute the features of every exposure with a logged matrix again, and compare; with `model` its scores too.

    The answer holds `exposures` (of which `test_exposures`) and `rows` compared; how many could not be,
    `before_snapshot`, since the log was shortened after they saw it; `features`: the largest difference
    of each, as `difference` says, null where it is infinite; `max`; `worst`: where that is; `held`. With a model
    also `model`, `drift` and, where there is none, `no_drift`: why.

    Raises:
        TabrankError: for a bad log or artifact, a log of another surface, and one without matrices.
    """
    artifact = None if model is None else load_artifact(model)
    features = Features(Schema(surface))
    if artifact is not None:
        artifact.encoder.check(features.columns)
    log = read_log(folder, surface, test_traffic=True)
    replay = Replay(features.schema, log)
    logged = _served(folder, log, features.columns)
    served = [one for one in logged if not replay.before_snapshot[one.exposure]]
    if not served:
        raise TabrankError(
            f"{folder}: every exposure with its features logged was ranked before the snapshot that the log begins "
            "with, since older records were deleted; audit it once it has newer ones"
        )
    worst = Worst(features.columns)
    at = {one.exposure: one for one in served}
    for number, (exposure, ours) in enumerate(recomputed(features, log, replay, np.array(list(at)))):
        worst.compare(at[exposure], ours)
        progress((number + 1) / len(served))
    result = {
        "exposures": len(served),
        "test_exposures": sum(one.is_test for one in served),
        "before_snapshot": len(logged) - len(served),
        "rows": sum(len(one.scores) for one in served),
        **worst.result(log),
    }
    if artifact is not None:
        result |= _against(artifact, features.columns, served)
        result["held"] = result["held"] and (result["model"]["max_difference"] or 0.0) <= SCORE_TOLERANCE
    return result


def difference(served: NDArray[np.floating], ours: NDArray[np.floating]) -> F64:
    """|served − ours| / max(1, |ours|); missing is equal to missing, and infinitely far from a number."""
    served, ours = np.asarray(served, np.float64), np.asarray(ours, np.float64)
    same = (served == ours) | (np.isnan(served) & np.isnan(ours))
    with np.errstate(invalid="ignore"):
        far = np.abs(served - ours) / np.maximum(1.0, np.abs(ours))
    return np.where(same, 0.0, np.where(np.isnan(far), np.inf, far))


class Worst:
    """The largest difference of each feature so far, and in which row it was."""

    def __init__(self, columns: Columns) -> None:
        sets = [name for name, width in columns.multi for _ in range(width)]
        self._names = [*columns.numeric, *columns.single, *sets]  # of each column; a set has several
        self._most = np.zeros(len(self._names))
        self._where = [(0, 0)] * len(self._names)  # exposure, row

    def compare(self, served: Served, ours: Matrix) -> None:
        """Take the rows of one exposure."""
        theirs = served.matrix
        differs = np.where(theirs.category != ours.category, np.inf, 0.0)
        rows = np.concatenate([difference(theirs.numeric, ours.numeric), differs], axis=1)
        if not len(rows):
            return
        at = rows.argmax(axis=0)
        most = rows[at, np.arange(len(at))]
        for column in np.flatnonzero(most > self._most).tolist():
            self._where[column] = (served.exposure, int(at[column]))
        self._most = np.maximum(self._most, most)

    def result(self, log: Log) -> dict[str, Any]:
        """As `audit` answers it."""
        features: dict[str, float] = {}
        for name, most in zip(self._names, self._most.tolist(), strict=True):
            features[name] = max(features.get(name, 0.0), most)
        column = int(self._most.argmax())
        most = float(self._most[column])
        worst = None
        if most > 0.0:
            exposure, row = self._where[column]
            worst = {
                "feature": self._names[column],
                "request_id": log.exposures["request_id"][exposure].as_py(),
                "candidate": log.exposures["candidates"][exposure][row].as_py(),
            }
        return {
            "features": {name: _finite(value) for name, value in features.items()},
            "max": _finite(most),
            "worst": worst,
            "held": most <= TOLERANCE,
        }


def table(result: Mapping[str, Any]) -> str:
    """What `audit` answers, for people: the features that differ most first."""
    drifts = (result.get("drift") or {"features": {}})["features"]
    ordered = sorted(result["features"].items(), key=lambda item: -_infinite(item[1]))
    width = max(len(name) for name, _ in ordered)
    lines = [
        f"{result['rows']} rows of {result['exposures']} exposures ({result['test_exposures']} of them test)"
    ]
    lines.append("feature".ljust(width) + "  difference" + ("  drift" if drifts else ""))
    for name, most in ordered:
        line = f"{name:<{width}}  {_infinite(most):10.1e}"
        lines.append(line + (f"  {drifts[name]:.3f}  {reading(drifts[name])}" if drifts else ""))
    if drifts:
        index = result["drift"]["score"]
        lines.append(f"{'the scores':<{width}}  {'':10}  {index:.3f}  {reading(index)}")
    if result.get("model"):
        ours = result["model"]
        most = "–" if ours["max_difference"] is None else f"{ours['max_difference']:.1e}"
        lines.append(f"scores of {ours['version']}: {ours['rows']} rows, difference {most}")
    if result.get("no_drift"):
        lines.append(f"no drift: {result['no_drift']}")
    if result["worst"]:
        where = result["worst"]
        lines.append(
            f"the most: {where['feature']} of candidate {where['candidate']} in ranking {where['request_id']}"
        )
    if result["held"]:
        return "\n".join([*lines, "held: what was served is what the log gives"])
    why = "the log gives other features or scores than were served; is all that the store was filled from in it?"
    return "\n".join([*lines, f"NOT held: {why}"])


def _infinite(value: float | None) -> float:
    return np.inf if value is None else value


def _served(folder: Path, log: Log, columns: Columns) -> list[Served]:
    """The exposures with a logged matrix, in the order of the log."""
    logged = _logged(folder)
    if not len(logged):
        raise TabrankError(
            f"{folder}: no exposure has its features logged; set log_features in the user_config of FeatureFetch to "
            "the share of rankings that are to have them (1.0: all), serve, and audit the log that this leaves"
        )
    place = {seq: i for i, seq in enumerate(logged["seq"].to_pylist())}
    lengths = pc.list_value_length(log.exposures["candidates"]).to_pylist()
    traffic = log.exposures["traffic"].to_pylist()
    served = []
    for exposure, seq in enumerate(log.exposures["seq"].to_pylist()):
        if seq not in place or seq is None:
            continue
        row = {name: logged[name][place[seq]] for name in COLUMNS}
        numeric = row["numeric"].values.to_numpy(zero_copy_only=False).astype(np.float32)
        category = row["category"].values.to_numpy(zero_copy_only=False).astype(np.uint64)
        num_rows = lengths[exposure]
        if (len(numeric), len(category)) != (
            num_rows * len(columns.numeric),
            num_rows * columns.num_category,
        ):
            raise TabrankError(
                f"{folder}: the features of exposure {log.exposures['request_id'][exposure].as_py()!r} are "
                f"{len(numeric)} numbers and {len(category)} categories, and the surface has {len(columns.numeric)} "
                f"and {columns.num_category} for each of its {num_rows} rows; name the surface that was served"
            )
        scores = row["scores"].values.to_numpy(zero_copy_only=False).astype(np.float32)
        matrix = Matrix(
            numeric.reshape(num_rows, len(columns.numeric)), category.reshape(num_rows, columns.num_category)
        )
        served.append(Served(exposure, matrix, scores, row["model"].as_py(), traffic[exposure] == "test"))
    return served


def _logged(folder: Path) -> pa.Table:
    """The logged matrices."""
    _, exposures = read_table(folder, "exposures", ("request_id", *COLUMNS))
    if not set(COLUMNS) <= set(exposures.column_names):
        return pa.table({name: [] for name in COLUMNS})
    return exposures.filter(pc.is_valid(exposures["numeric"]))


def _against(artifact: Artifact, columns: Columns, served: Sequence[Served]) -> dict[str, Any]:
    """The logged scores of the artifact's version against what it scores now, and what has moved since its training."""
    matrix = _stacked([one.matrix for one in served])
    ours = score(artifact.path, matrix)
    logged = np.concatenate([one.scores for one in served])
    lengths = [len(one.scores) for one in served]
    is_mine = np.repeat([one.model == artifact.version for one in served], lengths) & ~np.isnan(logged)
    found: dict[str, Any] = {
        "version": artifact.version,
        "rows": int(is_mine.sum()),
        "max_difference": float(np.abs(logged - ours)[is_mine].max()) if is_mine.any() else None,
    }
    is_live = np.repeat([not one.is_test for one in served], lengths)
    made_from = json.loads(artifact.read("evaluation.json")).get(STATISTICS)
    if made_from is None:
        why = f"{artifact.path} keeps no distributions of its training rows; fit or search again for a newer artifact"
    elif not is_live.any():
        why = "every exposure with features is test traffic, which says nothing of what viewers see"
    else:
        live = Matrix(matrix.numeric[is_live], matrix.category[is_live])
        return {"model": found, "drift": drift(made_from, columns, live, ours[is_live])}
    return {"model": found, "drift": None, "no_drift": why}


def _stacked(parts: Sequence[Matrix]) -> Matrix:
    return Matrix(
        np.concatenate([part.numeric for part in parts]), np.concatenate([part.category for part in parts])
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
