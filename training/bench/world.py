"""Measure how much of the gap from popular to the simulated world's oracle a model closes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from serve.contract.errors import TabrankError
from training.data.dataset import Dataset, Progress
from training.evaluation.evaluate import scored
from training.evaluation.slates import sink_non_finite

# Share of the gap between popular and the oracle, on the log's labels, that a model should close.
LEAST_CLOSED = 0.8


def bench_world(
    model: Path, world: Path, history: Path, log: Path, *, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Measure the AUC of model, popular, baseline, LightGBM and `oracle` on the rows of `log`.

    `lightgbm` is trained on `history`. `history` and `log` are the two sides of a split of `world`.
    The oracle's score is each shown candidate's P(join) if examined, from the world's
    truth.parquet. Against `log`, an AUC is that of the labels, which depend on position too.
    Against `truth`, each row counts P as a positive and 1 - P as a negative, at any position.

    Returns:
        `rows`; `auc` as {"log" | "truth": {contender: AUC}}; `closed`, the share of the gap from
        popular to the oracle, in the same form; `held`: the model closes `LEAST_CLOSED` on the log.

    Raises:
        TabrankError: for an invalid artifact or log, or a world that does not hold the log's truth.
    """
    artifact, _, data, scores = scored(model, history, log, baselines=True, progress=progress)
    chance = _truth(world / "truth.parquet", data)
    scores |= {} if data.baseline is None else {"baseline": data.baseline}
    scores |= {"popular": sink_non_finite(data.popular), "oracle": chance}
    auc = {
        "log": {name: float(roc_auc_score(data.label, values)) for name, values in scores.items()},
        "truth": {name: _truth_auc(chance, values) for name, values in scores.items()},
    }
    closed = {against: _closed(found) for against, found in auc.items()}
    return {
        "version": artifact.version,
        "rows": len(data),
        "auc": auc,
        "closed": closed,
        "held": closed["log"]["model"] >= LEAST_CLOSED,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, a line for each contender."""
    lines = [
        f"{result['rows']:,} rows" + " " * 12 + "AUC on the log (gap closed)   on the truth (gap closed)"
    ]
    for name in result["auc"]["log"]:
        parts = (f"{result['auc'][a][name]:.4f} ({result['closed'][a][name]:4.0%})" for a in ("log", "truth"))
        lines.append(f"  {name:<20}" + "           ".join(parts))
    return "\n".join(lines)


def _truth(path: Path, data: Dataset) -> NDArray[np.float64]:
    """Return P(label) of each row `[N]` if examined."""
    if not path.is_file():
        raise TabrankError(f"--world: {path} is missing; name a log that `training simulate` wrote")
    truth = pq.read_table(path, columns=["request_id", "p_join"])
    at = pc.index_in(pa.array(data.request_ids), truth["request_id"].combine_chunks())
    if at.null_count:
        raise TabrankError(
            f"{path}: has no truth of {at.null_count} exposures; --log must be a part of that world"
        )
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(truth["p_join"]).to_numpy())])
    rows = first[at.to_numpy()[data.slate]] + data.position
    found: NDArray[np.float64] = pc.list_flatten(truth["p_join"]).to_numpy()[rows]
    return found


def _truth_auc(chance: NDArray[np.float64], values: NDArray[np.floating]) -> float:
    label = np.repeat([1, 0], len(chance))
    return float(roc_auc_score(label, np.tile(values, 2), sample_weight=np.concatenate([chance, 1 - chance])))


def _closed(auc: Mapping[str, float]) -> dict[str, float]:
    """Return the share of the gap from popular to the oracle that each contender closes."""
    whole = auc["oracle"] - auc["popular"]
    return {name: (value - auc["popular"]) / whole for name, value in auc.items()}
