"""World whose ranker knew more: shown orders follow features and a signal that is no feature.

Each slate has PER candidates. What makes a label likely is the viewer's taste, the candidate's fame
and a hidden signal. The ranker that wrote the log used all three; models have the first two and
noise. Letters: S slates, N = S · PER rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from serve.features.matrix import Columns, Matrix
from serve.model.encoder import Encoder, NumericColumn
from serve.ranking.exploration import log_weight
from training.data.dataset import Dataset
from training.evaluation.slates import F64
from training.examination.examination import Examination

PER, VISITS = 20, 3
NAMES = ("taste", "fame", "noise")
ENCODER = Encoder(tuple(map(NumericColumn, NAMES)), (), ())
# Weights of taste, fame and the hidden signal: of the labels, and of the ranker of each arm.
WORTH = np.array([1.2, 0.5, 0.8])
RANKERS: Mapping[str, F64] = {
    "legacy": np.array([0.7, 0.5, 0.9]),
    "honest": np.array([0.5, 0.5, 0.0]),
    "fame": np.array([0.0, 1.0, 0.0]),
    "taste": np.array([1.0, 0.2, 0.0]),
    "mixed": np.array([0.5, 0.5, 0.7]),
}
FLAT, DECAY = np.ones(PER), 1 / (1 + np.arange(PER) / 5)


@dataclass(frozen=True)
class Hidden:
    """Rows of a log, with the true attraction `[N]` and examination by position `[PER]`."""

    rows: Dataset
    worth: F64
    theta: F64
    signal: F64

    def take(self, slates: slice) -> Hidden:
        """Return some slates."""
        rows = slice(*(x and x * PER for x in (slates.start, slates.stop)))
        return Hidden(self.rows.take(rows), self.worth[rows], self.theta, self.signal[rows])

    def joins(self, score: F64) -> float:
        """Return the labels per slate that the order by a score earns in truth."""
        order = np.argsort(-score.reshape(-1, PER), axis=1)
        return float((np.take_along_axis(self.worth.reshape(-1, PER), order, 1) @ self.theta).mean())


def hidden(
    num_slates: int,
    seed: int,
    theta: F64,
    *,
    arms: tuple[str, ...] = ("legacy",),
    explore: float = 0.0,
    signal: float = 1.0,
    base: float = -2.85,
) -> Hidden:
    """Return slates whose viewers are assigned to `arms` at random; a share `explore` is drawn.

    The hidden signal weighs `signal` times as much in all.
    """
    rng = np.random.default_rng(seed)
    shape = (num_slates, PER)
    viewer = np.arange(num_slates) // VISITS
    terms = np.stack([rng.normal(0, scale, shape) for scale in (1.0, 1.0, 1.0)])
    scale = np.array([1.0, 1.0, signal])
    eager = rng.normal(0, 0.4, viewer[-1] + 1)[viewer][:, None]
    worth = expit(base + eager + np.tensordot(WORTH * scale, terms, 1))
    arm = rng.integers(len(arms), size=viewer[-1] + 1)[viewer]
    ranker = np.array([RANKERS[name] for name in arms])[arm] * scale
    score = np.einsum("sf,fsc->sc", ranker, terms) + rng.normal(0, 0.3, shape)
    drawn = rng.random(num_slates) < explore
    weight = log_weight(expit(score - 3.0))
    key = np.where(drawn[:, None], weight + rng.gumbel(size=shape), score)
    order = np.argsort(-key, axis=1)
    worth, weight, *terms = (np.take_along_axis(x, order, 1) for x in (worth, weight, *terms))
    numeric = np.stack([terms[0], terms[1], rng.normal(size=shape)], axis=2).reshape(-1, 3)
    slate, num = np.repeat(np.arange(num_slates), PER), num_slates * PER
    zeros = np.zeros(num, np.int64)
    rows = Dataset(
        columns=Columns(NAMES, (), ()),
        matrix=Matrix(numeric.astype(np.float32), np.zeros((num, 0), np.uint64)),
        label=(rng.random(shape) < worth * theta).astype(np.float32).ravel(),
        slate=slate,
        viewer=slate // VISITS,
        shown=zeros,
        ts_ms=slate * 1_000,
        popular=numeric[:, 1].astype(np.float32),
        position=np.tile(np.arange(PER), num_slates),
        viewer_seen=zeros,
        candidate_seen=zeros,
        request_ids=[],
        candidate_ids=[],
        counts={},
        weight=np.where(np.repeat(drawn, PER), weight.ravel(), np.nan) if explore else None,
        arm=np.repeat(arm, PER) if len(arms) > 1 else None,
    )
    return Hidden(rows, worth.ravel(), theta, terms[2].ravel())


def fitted(world: Hidden, examination: Examination, columns: slice = slice(None)) -> tuple[F64, ...]:
    """Fit P(label | looked at) to the log with some features, by Fisher scoring, and return weights."""
    x = world.rows.matrix.numeric[:, columns].astype(np.float64)
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    theta, label = examination.at(world.rows.position), world.rows.label
    beta = np.append(np.log(label.mean() / theta.mean()), np.zeros(x.shape[1] - 1))
    for _ in range(20):
        p = expit(x @ beta)
        q = np.clip(theta * p, 1e-9, 1 - 1e-9)
        score = x.T @ ((label - q) / (1 - q) * (1 - p))
        information = (x.T * ((1 - p) ** 2 * q / (1 - q))) @ x
        step = np.linalg.solve(information, score)
        beta = beta + step * min(1.0, 1.0 / np.abs(step).max())
    return beta


def predicted(world: Hidden, beta: F64, columns: slice = slice(None)) -> F64:
    """Return the predictions of `fitted` weights."""
    return expit(beta[0] + world.rows.matrix.numeric[:, columns].astype(np.float64) @ beta[1:])
