"""Measure how much of the gap from popular to the simulated world's oracle a model closes.

Letters: N rows, P positions.
"""

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
from training.evaluation.expected_labels import expected_labels, placed
from training.evaluation.metrics import Contender
from training.evaluation.slates import Slates, midranks
from training.examination.examination import Examination
from training.terminal import decimal

# Share of the gap between popular and the oracle, in true label events, that a model should close.
LEAST_CLOSED = 0.6
SEED = 0
# Measures whose order of the contenders is compared with the true one.
YARDSTICKS = ("expected_labels", "ndcg@10")


def bench_world(
    model: Path, world: Path, history: Path, log: Path, *, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Measure a model, its rivals, a `random` order and the `oracle` on the rows of `log`.

    `lightgbm` is trained on `history`. `history` and `log` are the two sides of a split of `world`.
    The oracle's score is each shown candidate's P(join) if examined, from the world's
    truth.parquet.

    Returns:
        `rows`; `contenders` as {name: {measure: value}} with `ndcg@10`, `auc` (on the truth: each
        row counts P as a positive and 1 - P as a negative), `expected_labels`,
        `expected_labels_se` (by the model's own examination; null if it has none), `label_events`
        (the true number per exposure that the order earns: the sum of examination times P) and
        `closed`, the share of the gap from popular to the oracle in it, null where all orders earn
        the same; `rank_correlation` of each of `YARDSTICKS` with `label_events` (Spearman 1904);
        `reason` why there are no expected labels; `held`: the model closes `LEAST_CLOSED`.

    Raises:
        TabrankError: for an invalid artifact or log, or a world that does not hold the log's truth.
    """
    artifact, _, data, scores = scored(model, history, log, baselines=True, progress=progress)
    chance, theta = _truth(world / "truth.parquet", data)
    baseline = getattr(data, "baseline", None)
    scores |= {"popular": data.popular} | ({} if baseline is None else {"baseline": baseline})
    scores |= {"random": np.random.default_rng(SEED).random(len(data)), "oracle": chance}
    slates = Slates(data.label, data.slate, data.viewer)
    plain = ("popular", "baseline", "random")
    contenders = {
        name: Contender.of(slates, values, None if name in plain else values)
        for name, values in scores.items()
    }
    earns = expected_labels(contenders, data.position, Examination.of(artifact.manifest))
    earned = {
        name: float(theta[placed(one, data.position)] @ chance / len(slates))
        for name, one in contenders.items()
    }
    gap = earned["oracle"] - earned["popular"]
    table = {
        name: {
            "ndcg@10": float(one.ndcg.mean()),
            "auc": _truth_auc(chance, one.score),
            "expected_labels": earns.value(name)[0],
            "expected_labels_se": earns.error(name),
            "label_events": earned[name],
            "closed": (earned[name] - earned["popular"]) / gap if gap > 1e-9 else None,
        }
        for name, one in contenders.items()
    }
    truth = midranks(np.round(list(earned.values()), 9))
    orders = {by: [line[by] for line in table.values()] for by in YARDSTICKS}
    return {
        "version": artifact.version,
        "rows": len(data),
        "contenders": table,
        "rank_correlation": {by: _correlation(values, truth) for by, values in orders.items()},
        "reason": earns.reason,
        "held": (table["model"]["closed"] or 0.0) >= LEAST_CLOSED,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, a line for each contender."""
    columns = ("NDCG@10", "AUC, truth", "expected labels", "true label events", "gap closed")
    lines = [f"{result['rows']:,} rows".ljust(18) + "".join(f"{name:>20}" for name in columns)]
    for name, one in result["contenders"].items():
        expected, closed = decimal(one["expected_labels"]), one["closed"]
        expected += "" if one["expected_labels_se"] is None else f" ± {one['expected_labels_se']:.4f}"
        cells = [decimal(one["ndcg@10"]), decimal(one["auc"]), expected, decimal(one["label_events"])]
        cells.append("–" if closed is None else f"{closed:.0%}")
        lines.append(f"  {name:<16}" + "".join(f"{cell:>20}" for cell in cells))
    correlation = result["rank_correlation"]
    lines.append(
        "rank correlation with true label events: "
        + ", ".join(f"{by} {decimal(value)}" for by, value in correlation.items())
    )
    if result["reason"]:
        lines.append(f"no expected labels: {result['reason']}")
    if result["contenders"]["oracle"]["closed"] is None:
        lines.append("every order earns the same in this world, so no model can be better")
    return "\n".join(lines)


def _truth(path: Path, data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P(label) of each row `[N]` if examined, and the examination `[P]` of each position."""
    if not path.is_file():
        raise TabrankError(f"--world: {path} is missing; name a log that `training simulate` wrote")
    truth = pq.read_table(path, columns=["request_id", "p_join", "examination"])
    at = pc.index_in(pa.array(data.request_ids), truth["request_id"].combine_chunks())
    if at.null_count:
        raise TabrankError(
            f"{path}: has no truth of {at.null_count} exposures; --log must be a part of that world"
        )
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(truth["p_join"]).to_numpy())])
    rows = first[at.to_numpy()[data.slate]] + data.position
    chance: NDArray[np.float64] = pc.list_flatten(truth["p_join"]).to_numpy()[rows]
    theta = np.zeros(int(data.position.max()) + 1)
    theta[data.position] = pc.list_flatten(truth["examination"]).to_numpy()[rows]
    return chance, theta


def _truth_auc(chance: NDArray[np.float64], values: NDArray[np.floating]) -> float:
    label = np.repeat([1, 0], len(chance))
    return float(roc_auc_score(label, np.tile(values, 2), sample_weight=np.concatenate([chance, 1 - chance])))


def _correlation(values: list[float | None], truth: NDArray[np.float64]) -> float | None:
    """Return the rank correlation with the ranks `truth`; None if either has no order."""
    if None in values:
        return None
    rank = midranks(np.round(np.array(values, np.float64), 9))
    return float(np.corrcoef(rank, truth)[0, 1]) if rank.std() and truth.std() else None
