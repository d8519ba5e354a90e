"""World whose ranker knew more than a model can: it used a signal that is not a feature.

Each slate has PER candidates. A label depends on the viewer's taste, the candidate's fame and a
hidden signal. The ranker that wrote the log used all three. Models have the first two, and noise.
The arm `ruled` ranks as `legacy` does and then applies RULES; the feature of partners then replaces
the noise. In pinned slates, people pinned the candidate with the highest hidden signal. Letters: S
slates, N = S · PER rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from serve.config.slate import Boost, Limit, Rule, Spread, Wanted
from serve.features.matrix import Columns, Matrix
from serve.features.surface import Surface
from serve.model.encoder import Encoder, NumericColumn
from serve.ranking.exploration import log_weight
from serve.ranking.slate import rerank
from tests.support.expected import expected
from training.data.dataset import Dataset
from training.evaluation.metrics import Contender, calibrated
from training.evaluation.paired import paired
from training.evaluation.slates import F64, Slates
from training.examination.estimate import examine
from training.examination.examination import Examination

PER, VISITS = 20, 3
NAMES = ("taste", "fame", "noise")
ENCODER = Encoder(tuple(map(NumericColumn, NAMES)), (), ())
# Weights of taste, fame and the hidden signal, for the labels and for the ranker of each arm.
WORTH = np.array([1.2, 0.5, 0.8])
RANKERS: Mapping[str, F64] = {
    "legacy": np.array([0.7, 0.5, 0.9]),
    "honest": np.array([0.5, 0.5, 0.0]),
    "fame": np.array([0.0, 1.0, 0.0]),
    "taste": np.array([1.0, 0.2, 0.0]),
    "mixed": np.array([0.5, 0.5, 0.7]),
    "ruled": np.array([0.7, 0.5, 0.9]),
}
# Names of the features. Hosts are numbered from 0 to 4, and a fifth of the candidates are partners.
HOST, PARTNER = "candidate.host", "candidate.partner"
RULES = (
    Rule(boost=Boost({PARTNER: Wanted(low=1, high=1)}, 2.0)),
    Rule(spread=Spread(HOST, 1, 4)),
    Rule(limit=Limit({HOST: Wanted(low=1, high=1)}, 1, 10)),
)
FLAT, DECAY = np.ones(PER), 1 / (1 + np.arange(PER) / 5)


@dataclass(frozen=True)
class Hidden:
    """Rows of a log, with the true attraction `[N]` and examination by position `[PER]`."""

    rows: Dataset
    worth: F64
    theta: F64
    signal: F64

    def take(self, slates: slice) -> Hidden:
        """Return the slates in a range."""
        rows = slice(*(x and x * PER for x in (slates.start, slates.stop)))
        return Hidden(self.rows.take(rows), self.worth[rows], self.theta, self.signal[rows])

    def joins(self, score: F64) -> float:
        """Return how many labels per slate the order by a score really earns."""
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
    pins: float = 0.0,
) -> Hidden:
    """Return slates of viewers who are assigned to `arms` at random.

    A name that occurs twice in `arms` gets twice as many viewers. A share `explore` of the orders
    is drawn at random. The weight of the hidden signal is multiplied by `signal`, for labels and
    rankers alike. In a share `pins` of the slates, the request pins the candidate with the highest
    hidden signal to one of the first four places.
    """
    rng = np.random.default_rng(seed)
    shape = (num_slates, PER)
    viewer = np.arange(num_slates) // VISITS
    terms = np.stack([rng.normal(0, scale, shape) for scale in (1.0, 1.0, 1.0)])
    scale = np.array([1.0, 1.0, signal])
    eager = rng.normal(0, 0.4, viewer[-1] + 1)[viewer][:, None]
    worth = expit(base + eager + np.tensordot(WORTH * scale, terms, 1))
    arm = rng.integers(len(arms), size=viewer[-1] + 1)[viewer]
    arm = np.array([arms.index(name) for name in arms])[arm]
    ranker = np.array([RANKERS[name] for name in arms])[arm] * scale
    score = np.einsum("sf,fsc->sc", ranker, terms) + rng.normal(0, 0.3, shape)
    drawn = rng.random(num_slates) < explore
    weight = log_weight(expit(score - 3.0))
    key = np.where(drawn[:, None], weight + rng.gumbel(size=shape), score)
    order, pinned, partner = np.argsort(-key, axis=1), np.zeros(shape, bool), np.zeros(shape)
    for s in range(num_slates) if pins or "ruled" in arms else ():
        rules = RULES if arms[arm[s]] == "ruled" and not drawn[s] else ()
        chosen = {int(rng.integers(4)): int(terms[2][s].argmax())} if rng.random() < pins else {}
        partner[s] = rng.random(PER) < 0.2
        facts = {HOST: rng.integers(5, size=PER), PARTNER: partner[s]}
        of_slate = order[s], score[s].astype(np.float32), np.zeros(PER, np.int64), facts.__getitem__, PER
        order[s] = rerank(rules, chosen, *of_slate).order
        pinned[s, list(chosen)] = True
    arrays = (worth, weight, partner, *terms)
    worth, weight, partner, *terms = (np.take_along_axis(x, order, 1) for x in arrays)
    weight[pinned] = -np.inf
    third = partner if "ruled" in arms else rng.normal(size=shape)
    numeric = np.stack([terms[0], terms[1], third], axis=2).reshape(-1, 3)
    slate, num = np.repeat(np.arange(num_slates), PER), num_slates * PER
    zeros = np.zeros(num, np.int64)
    rows = Dataset(
        columns=Columns(NAMES, (), ()),
        matrix=Matrix(numeric.astype(np.float32), np.zeros((num, 0), np.uint64)),
        outcomes=((rng.random(shape) < worth * theta).astype(np.float32).ravel())[:, None],
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
        weight=np.where(np.repeat(drawn, PER), weight.ravel(), np.nan) if explore else None,
        arm=np.repeat(arm, PER) if len(arms) > 1 else None,
        pinned=pinned.ravel() if pins else None,
    )
    return Hidden(rows, worth.ravel(), theta, terms[2].ravel())


class Judged:
    """Models that learned from the first half of a world and are judged on the second half."""

    def __init__(self, surface: Surface, seed: int, theta: F64, num_slates: int = 6_000, **more: Any) -> None:
        self.world = hidden(2 * num_slates, seed, theta, **more)
        self.first, self.second = (
            self.world.take(half) for half in (slice(num_slates), slice(num_slates, None))
        )
        self.examination = examine(self.first.rows, ENCODER, surface)
        self.weights = fitted(self.first.rows, self.examination)
        rows = self.second.rows
        self.slates, self.looked = (
            Slates(rows.label, rows.slate, rows.viewer),
            self.examination.at(rows.position),
        )

    def score(self, world: Hidden, taste: float) -> F64:
        """Return the scores of the model if its weight of taste is multiplied by `taste`."""
        columns = world.rows.matrix.numeric.astype(np.float64)
        return np.asarray(self.weights[2] * columns[:, 1] + taste * self.weights[1] * columns[:, 0])

    def model(self, taste: float = 1.0) -> Contender:
        """Return the model with this share of taste, calibrated on the first half."""
        matrix = Matrix(
            self.score(self.first, taste)[:, None].astype(np.float32), self.first.rows.matrix.category
        )
        start, slope = fitted(replace(self.first.rows, matrix=matrix), self.examination)
        chance = expit(start + slope * self.score(self.second, taste))
        return Contender.of(self.slates, chance, chance * self.looked)

    def rule(self, values: F64) -> Contender:
        """Return a contender that ranks by `values`, with the probabilities that `assess` gives."""
        return Contender.of(self.slates, values, calibrated(self.slates.label, values, self.looked))

    def taste_that_earns(self, joins: float) -> float:
        """Return the share of taste with which the model really earns `joins` labels per slate."""
        return float(
            brentq(lambda taste: self.second.joins(self.score(self.second, taste)) - joins, 0.0, 1.0)
        )

    def pair(self, ours: Contender, theirs: Contender) -> dict[str, Any]:
        """Return the paired comparison of two contenders, which decides between them."""
        both, rows = {"model": ours, "rival": theirs}, self.second.rows
        earns = expected(both, rows.position, self.examination, rows.weight)
        is_learned = self.examination.source == "learned"
        return paired(ours, theirs, earns.difference("model", "rival"), is_learned=is_learned)


def fitted(rows: Dataset, examination: Examination) -> F64:
    """Fit P(label | looked at) to the features by Fisher scoring; return intercept and weights."""
    x = np.insert(rows.matrix.numeric.astype(np.float64), 0, 1.0, axis=1)
    theta, label = examination.at(rows.position), rows.label
    beta = np.append(np.log(label.mean() / theta.mean()), np.zeros(x.shape[1] - 1))
    for _ in range(20):
        p = expit(x @ beta)
        q = np.clip(theta * p, 1e-9, 1 - 1e-9)
        information = (x.T * ((1 - p) ** 2 * q / (1 - q))) @ x
        step = np.linalg.solve(information, x.T @ ((label - q) / (1 - q) * (1 - p)))
        beta = beta + step * min(1.0, 1.0 / np.abs(step).max())
    return beta
