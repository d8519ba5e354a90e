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

from serve.contract.errors import TabrankError
from training.data.dataset import Dataset, Progress
from training.evaluation.evaluate import scored
from training.evaluation.expected_labels import expected_labels, placed
from training.evaluation.metrics import Z95, Contender, mean
from training.evaluation.slates import Slates
from training.examination.examination import Examination
from training.terminal import decimal

# Share of the gap between popular and the oracle, in true label events, that a model should close.
# On 150,000 rows of six worlds, networks that remove position bias close 68 to 75 %; those that
# ignore it 45 to 64 %, and a rule over three features 43 to 47 %.
LEAST_CLOSED = 0.65
SEED = 0


def bench_world(
    model: Path, world: Path, history: Path, log: Path, *, progress: Progress = lambda share: None
) -> dict[str, Any]:
    """Measure a model, its rivals, a `random` order and the `oracle` on the rows of `log`.

    `lightgbm` is trained on `history`. `history` and `log` are the two sides of a split of `world`.
    The oracle's score is each shown candidate's P(join) if examined, from the world's
    truth.parquet.

    Returns:
        `rows`; `contenders` as {name: {measure: value}} with `ndcg@10`, `expected_labels` with its
        95 % `interval` (by the model's own examination; null if it has none), `label_events` (the
        true number per exposure that the order earns: the sum of examination times P) and `closed`,
        the share of the gap from popular to the oracle in it, null where all orders earn the same;
        `reason` why the orders are not compared; `held`: the model closes `LEAST_CLOSED`.

    Raises:
        TabrankError: for an invalid artifact or log, or a world that does not hold the log's truth.
    """
    path = world / "truth.parquet"
    if not path.is_file():
        raise TabrankError(f"--world: {path} is missing; name a log that `training simulate` wrote")
    artifact, _, data, scores = scored(model, history, log, baselines=True, progress=progress)
    chance, theta = _truth(path, data)
    scores |= data.rules | {"random": np.random.default_rng(SEED).random(len(data)), "oracle": chance}
    slates = Slates(data.label, data.slate, data.viewer)
    contenders = {name: Contender.of(slates, values, None) for name, values in scores.items()}
    earns = expected_labels(contenders, data.position, Examination.of(artifact.manifest), data.weight)
    places = {name: placed(one, data.position) for name, one in contenders.items()}
    earned = {name: float(theta[place] @ chance / len(slates)) for name, place in places.items()}
    gap = earned["oracle"] - earned["popular"]
    found: dict[str, dict[str, Any]] = {}
    for name, one in contenders.items():
        value, interval = earns.value(name)
        found[name] = {"ndcg@10": mean(one.ndcg), "expected_labels": value, "interval": interval}
        # Ignore a gap of rounding errors.
        closed = (earned[name] - earned["popular"]) / gap if gap > 1e-9 else None
        found[name] |= {"label_events": earned[name], "closed": closed}
    return {
        "version": artifact.version,
        "rows": len(data),
        "contenders": found,
        "reason": earns.about["reason"] if gap > 1e-9 else "every order earns the same in this world",
        "held": (found["model"]["closed"] or 0.0) >= LEAST_CLOSED,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, a line for each contender."""
    columns = ("NDCG@10", "expected labels", "true label events", "gap closed")
    lines = [f"{result['rows']:,} rows".ljust(18) + "".join(f"{name:>20}" for name in columns)]
    for name, one in result["contenders"].items():
        cells = [decimal(one[by]) for by in ("ndcg@10", "expected_labels", "label_events")]
        if one["interval"]:
            cells[1] += f" ± {(one['interval'][1] - one['expected_labels']) / Z95:.4f}"
        cells.append("–" if one["closed"] is None else f"{one['closed']:.0%}")
        lines.append(f"  {name:<16}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines + ([f"no comparison: {result['reason']}"] if result["reason"] else []))


def _truth(path: Path, data: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P(label) of each row `[N]` if examined, and the examination `[P]` of each position."""
    truth = pq.read_table(path, columns=["request_id", "p_join", "examination"])
    at = pc.index_in(pa.array(data.request_ids), truth["request_id"].combine_chunks())
    if at.null_count:
        raise TabrankError(f"{path}: no truth of {at.null_count} exposures; --log must be part of that world")
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(truth["p_join"]).to_numpy())])
    rows = first[at.to_numpy()[data.slate]] + data.position
    chance: NDArray[np.float64] = pc.list_flatten(truth["p_join"]).to_numpy()[rows]
    theta = np.zeros(int(data.position.max()) + 1)
    theta[data.position] = pc.list_flatten(truth["examination"]).to_numpy()[rows]
    return chance, theta
