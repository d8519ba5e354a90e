"""Reasons of a fitted model against exact Shapley values, the typical candidate as reference."""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from serve.features.matrix import Matrix
from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn, entry_hash
from serve.model.scorer_cache import timed
from serve.ranking.reasons import explain
from tests.support.slates import slate_of
from training.fit.loop import FitConfig, run
from training.network.model import Model, one_thread
from training.network.network import NetworkConfig, inputs

NUM_ROWS, SLATE = 6_000, 40
TOPICS, TAGS = ("music", "news", "sport"), ("live", "new")
ENCODER = Encoder(
    (*(NumericColumn(f"n{i}", indicator=i == 0) for i in range(6)), NumericColumn("count", "log1p")),
    (SingleColumn("topic", TOPICS, 2),),
    (MultiColumn("tags", 2, TAGS),),
)


@pytest.fixture(scope="module")
def fitted():
    """Return a fitted model with interactions, and rows of features."""
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(NUM_ROWS, 7)).astype(np.float32)
    numeric[:, 6] = rng.poisson(3, NUM_ROWS)
    topic, tags = rng.integers(0, 3, NUM_ROWS), rng.integers(0, 2, (NUM_ROWS, 2))
    logit = 1.5 * numeric[:, 0] * (topic == 1) + numeric[:, 1] - 0.5 * numeric[:, 2] * numeric[:, 3]
    logit += 0.3 * numeric[:, 6] + tags[:, 0] - 2
    label = (rng.random(NUM_ROWS) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    numeric[rng.random(NUM_ROWS) < 0.1, 0] = np.nan
    hashes = np.array([entry_hash(word) for word in (*TOPICS, *TAGS)], np.uint64)
    category = np.concatenate([hashes[topic][:, None], np.where(tags, hashes[3:], np.uint64(0))], axis=1)
    rows = inputs(ENCODER, ENCODER.encode(numeric, category), label[:, None], np.ones((NUM_ROWS, 1)))
    config = FitConfig(
        network=NetworkConfig(width=8, n_steps=3, mask_type="sparsemax"), epochs=8, batch_size=256
    )
    with one_thread():
        model = Model.of(ENCODER, config.network, run(rows, rows, ENCODER, config).kept(config))
        yield model, Matrix(numeric, category)


def exact(score, columns, row: Matrix, typical: Matrix):
    """Return the Shapley value `[N]` of each feature, all orders of features counted alike."""
    places = [(slice(i, i + 1), slice(0)) for i in range(len(columns.numeric))]
    places += [(slice(0), part) for _, part in columns.category_parts()]
    # A feature with the typical value has the value 0 by the axiom of the null player.
    differing = [
        n
        for n, (number, part) in enumerate(places)
        if not np.array_equal(row.numeric[0, number], typical.numeric[0, number], equal_nan=True)
        or (row.category[0, part] != typical.category[0, part]).any()
    ]

    def log_odds(taken):
        rows = typical.rows(np.zeros(len(taken), int))
        for flags, n in zip(taken.T.astype(bool), differing, strict=True):
            number, part = places[n]
            rows.numeric[flags, number] = row.numeric[0, number]
            rows.category[flags, part] = row.category[0, part]
        p = score(rows).astype(np.float64)
        return np.log(p / (1 - p))

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # To compile its loops would take longer than to run them.
        patch.setenv("NUMBA_DISABLE_JIT", "1")
        # The package uses what its libraries have deprecated.
        warnings.simplefilter("ignore")
        import shap

        of_all = shap.explainers.Exact(log_odds, np.zeros((1, len(differing))))
        found = of_all(np.ones((1, len(differing))), max_evals=1 << 20, silent=True).values[0]
    values = np.zeros(len(places))
    values[differing] = found
    return values


def ranks(score, columns, matrix, slate, num_slates, num_each):
    """Return for each row Spearman's correlation of sizes over its five largest values.

    It is 0 where it is not defined: where all five reasons are alike.
    """
    rng, found = np.random.default_rng(0), []

    async def call(version, payload):
        rows = Matrix.from_bytes(payload)
        scores = score(Matrix(rows.numeric.copy(), rows.category))
        return timed(scores.astype(np.float32).tobytes(), 1.0)

    for number in rng.choice(np.unique(slate)[1:-1], num_slates, replace=False):
        part = matrix.rows(np.flatnonzero(slate == number))
        ranked = slate_of(part, score(part))
        explained = asyncio.run(explain(ranked, columns, call, len(ranked.order)))
        for e in rng.choice(len(explained.contributions), num_each, replace=False):
            values = exact(score, columns, part.rows(ranked.order[e : e + 1]), explained.typical)
            top = np.argsort(-np.abs(values))[:5]
            ours = np.abs(explained.contributions[e, top])
            found.append(0.0 if np.ptp(ours) == 0 else spearmanr(np.abs(values[top]), ours).statistic)
    return found


@pytest.mark.integration
@pytest.mark.no_ray
def test_the_five_largest_reasons_are_ordered_as_exact_shapley_values(fitted):
    model, matrix = fitted

    def score(rows):
        return model.shares(rows)[:, 0]

    correlations = ranks(score, ENCODER.columns, matrix, np.arange(NUM_ROWS) // SLATE, 10, 4)
    assert len(correlations) == 40
    assert np.mean(correlations) > 0.8
