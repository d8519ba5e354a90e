"""World in which joins cost hides: a candidate with bait is joined more, and hidden much more.

Each slate has PER candidates. The viewer's taste and the candidate's bait decide whether it is
joined or hidden. The ranker that wrote the log knew both, with noise, and so does the model.
Letters: S slates, N = S · PER rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from serve.features.matrix import Columns, Matrix
from serve.features.surface import Surface, read_surface
from serve.model.encoder import Encoder, NumericColumn
from tests.support.small_surface import TOML
from training.data.dataset import Dataset
from training.evaluation.slates import F64
from training.examination.examination import Examination

PER, VISITS = 20, 3
NAMES = ("taste", "bait")
ENCODER = Encoder(tuple(map(NumericColumn, NAMES)), (), ())
THETA = 1 / (1 + np.arange(PER) / 5)
KNOWN = Examination("explored", tuple(THETA), (0.0,) * PER, 1_000)
# Standard deviation of the model's error, in log odds, for each outcome.
ERROR = np.array([0.4, 0.6])
OUTCOMES = """
events = ["click", "join", "leave", "hide"]
outcomes.join = { event = "join", within = "10s" }
outcomes.hide = { event = "hide", within = "20s" }
weights.join = 1
weights.hide = -2
"""


def surface() -> Surface:
    """Return the small surface with joins, and hides that weigh −2."""
    rest = [line for line in TOML.splitlines() if not line.startswith(("events", "outcomes"))]
    return read_surface("\n".join([rest[1], OUTCOMES, *rest[2:]]), "surface.toml")


@dataclass(frozen=True)
class Trade:
    """Rows of a log, the model's predictions `[N, 2]` and the true attraction `[N, 2]`."""

    rows: Dataset
    shares: F64
    worth: F64

    def earns(self, weights: Mapping[str, float]) -> F64:
        """Return the joins and hides per slate `[2]` that an order by the utility really earns."""
        utility = self.shares @ np.array([weights["join"], weights["hide"]])
        order = np.argsort(-utility.reshape(-1, PER), axis=1)
        sorted_worth = np.take_along_axis(self.worth.reshape(-1, PER, 2), order[:, :, None], 1)
        return np.asarray(np.einsum("sco,c->o", sorted_worth, THETA) / len(order))


def trade(num_slates: int, seed: int) -> Trade:
    """Return slates in the order of a ranker that preferred taste and bait."""
    rng = np.random.default_rng(seed)
    shape = (num_slates, PER)
    viewer = np.arange(num_slates) // VISITS
    taste, bait = rng.normal(size=(2, *shape))
    order = np.argsort(-(0.6 * taste + 0.6 * bait + rng.normal(0, 0.5, shape)), axis=1)
    taste, bait = (np.take_along_axis(values, order, 1) for values in (taste, bait))
    eager = rng.normal(0, 0.4, viewer[-1] + 1)[viewer][:, None]
    odds = np.stack([-2.4 + taste + 0.3 * bait + eager, -4.6 - 0.3 * taste + 1.2 * bait + eager], axis=2)
    worth = expit(odds).reshape(-1, 2)
    shares = expit(odds + rng.normal(0, ERROR, odds.shape) - eager[:, :, None]).reshape(-1, 2)
    num = num_slates * PER
    slate, zeros = np.repeat(np.arange(num_slates), PER), np.zeros(num, np.int64)
    position = np.tile(np.arange(PER), num_slates)
    numeric = np.stack([taste.ravel(), bait.ravel()], axis=1).astype(np.float32)
    rows = Dataset(
        columns=Columns(NAMES, (), ()),
        matrix=Matrix(numeric, np.zeros((num, 0), np.uint64)),
        outcomes=(rng.random((num, 2)) < worth * THETA[position][:, None]).astype(np.float32),
        slate=slate,
        viewer=slate // VISITS,
        shown=zeros,
        ts_ms=slate * 1_000,
        popular=numeric[:, 1],
        position=position,
        viewer_seen=zeros,
        candidate_seen=zeros,
        request_ids=[],
        candidate_ids=[],
    )
    return Trade(rows, shares, worth)


def without_signal(world: Trade, seed: int) -> Trade:
    """Return the world with hides that nothing foretells, of which a model found a little."""
    rng, num = np.random.default_rng([seed, 7]), len(world.rows)
    outcomes, shares = world.rows.outcomes.copy(), world.shares.copy()
    outcomes[:, 1] = rng.random(num) < 0.03 * THETA[world.rows.position]
    shares[:, 1] = 0.03 * np.exp(rng.normal(0, 0.02, num))
    return replace(world, rows=replace(world.rows, outcomes=outcomes), shares=shares)
