"""Compare what a fit and its evaluation say with the truth, in simulated worlds of several kinds.

Each world except for the first breaks an assumption of a method. In shapes, N is the number of rows
and O of outcomes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.features.rows import Schema
from serve.features.surface import Surface, load_surface
from serve.log.reader import read_log
from training.data.dataset import Dataset, build
from training.data.split import split
from training.evaluation.evaluate import assess, score
from training.evaluation.slates import F64, I64, Slates
from training.evaluation.verdict import outcome
from training.examination.examination import Examination
from training.fit.fit import fit
from training.fit.sizing import sized
from training.terminal import PARTS, decimal
from training.world.provenance import Provenance
from training.world.simulate import simulate
from training.world.world import World

SURFACE = "spaces"
# What each world breaks, and the settings of `simulate` that do so.
WORLDS: Mapping[str, Mapping[str, Any]] = {
    "as assumed": {},
    "examination in a cascade": {"examination": "cascade"},
    "the shown order knew more": {"unkind": ("hidden",)},
    "it knew more, no position bias": {"unkind": ("hidden",), "examination": "none"},
    "joins after the label's window": {"unkind": ("late",)},
}
# The tenth position, from 0.
TENTH = 9


def worlds(rows: int, seed: int = 0) -> dict[str, Any]:
    """Return for each of `WORLDS` what is said about a model there, and what is true.

    The model is trained on the first 80 % of at least `rows` rows, and measured on the rest. A line
    holds

    - `theta`, the examination of the tenth position, with its `source`, and the `true theta`;
    - the `verdict`, and `said`: the difference between model and popular order in expected labels,
      with its standard error;
    - the same difference in truth, in `joins` and in `minutes`, and that of an oracle that knows
      P(join);
    - `auc` and `ece`.
    """
    found = {}
    for name, kind in WORLDS.items():
        PARTS.begin(name)
        with simulated(rows, seed, days=2.0, **kind) as log:
            found[name] = _measured(log, seed)
    return found


def table(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the worlds as text, with a line for each."""
    lines = pd.DataFrame([*result.values()], index=[*result])
    return str(lines.to_string(float_format=decimal, na_rep="–"))


@contextmanager
def simulated(rows: int, seed: int, **settings: Any) -> Iterator[Path]:
    """Simulate a world and yield its log, which is deleted at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="tabrank-benchmark-") as folder:
        log = Path(folder) / "log"
        simulate(log, rows=rows, seed=seed, **settings)
        yield log


def _measured(log: Path, seed: int) -> dict[str, Any]:
    surface = load_surface(SURFACE)
    manifest, data, scores, truth = trained(log, surface, log.with_name("model"), seed)
    (examination,), ours = Examination.of(manifest), scores[:, 0]
    evaluation = assess(data, {"model": scores}, surface, examinations=[examination])
    pair = evaluation["paired"]["model-popular"]
    world, slates = Provenance.read(log).world(), Slates(data.label, data.slate, data.viewer)
    orders = (data.popular, ours, truth["p_join"])
    joins, minutes = np.transpose([_earned(slates.order(by), slates, truth, world) for by in orders])
    return {
        "source": examination.source,
        "theta": float(examination.at(np.array(TENTH))),
        "true theta": float(truth["examination"][data.position == TENTH].mean()),
        "said": pair["expected_labels"],
        "error": pair["expected_labels_se"],
        "joins": joins[1] - joins[0],
        "oracle's": joins[2] - joins[0],
        "minutes": minutes[1] - minutes[0],
        "oracle's minutes": minutes[2] - minutes[0],
        **{name: evaluation["model"][name] for name in ("auc", "ece")},
        "verdict": outcome(evaluation)[1],
    }


def trained(
    log: Path, surface: Surface, model: Path, seed: int
) -> tuple[dict[str, Any], Dataset, NDArray[np.float32], dict[str, F64]]:
    """Fit a model to the first 80 % of a simulated log, whose two parts are written beside it.

    Returns the manifest, and for the rest of the log the rows, their scores [N, O], and their
    truth, each of which is [N].
    """
    before, after = log.with_name("before"), log.with_name("after")
    if not before.exists():
        split(log, 0.8, before, after)
    manifest = fit(surface, before, model, lambda num: sized(num, seed=seed, num_workers=0))
    data = build(Schema(surface), read_log(after, surface), history=read_log(before, surface))
    return manifest, data, score(model, data.matrix), _truth(log, data)


def _truth(log: Path, data: Dataset) -> dict[str, F64]:
    """Return the columns of the log's truth for the rows [N] of its dataset."""
    truth = pq.read_table(log / "truth.parquet")
    at = pc.index_in(pa.array(data.request_ids), truth["request_id"].combine_chunks()).to_numpy()
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(truth["p_join"]).to_numpy())])
    rows = first[at[data.slate]] + data.position
    names = ("p_join", "examination", "minutes")
    return {name: pc.list_flatten(truth[name]).to_numpy()[rows] for name in names}


def _earned(order: I64, slates: Slates, truth: Mapping[str, F64], world: World) -> F64:
    """Return the true joins and minutes per slate if the rows are in this order."""
    each = np.array([truth["p_join"], truth["p_join"] * truth["minutes"]])
    total = np.zeros(len(each))
    for rows in np.split(order, np.cumsum(slates.size).astype(np.int64)[:-1]):
        total += each[:, rows] @ world.examination(truth["p_join"][rows])
    return total / len(slates)
