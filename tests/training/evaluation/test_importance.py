from __future__ import annotations

from dataclasses import replace

import numpy as np

from serve.features.matrix import Columns, Matrix
from tests.support.evaluation_rows import dataset, truth
from tests.support.networks import random_network
from training.evaluation.importance import importance
from training.network.model import UNCALIBRATED, Model
from training.network.network import NetworkConfig


def lost_by(score, data):
    """Return the line of each feature, without its name."""
    return {line.pop("feature"): line for line in importance(score, data)}


def test_what_the_score_does_not_use_is_not_missed(surface):
    data = dataset(surface)
    lost = lost_by(lambda matrix: truth(data, matrix), data)
    assert set(lost) == set(surface.features)
    assert lost["topic_affinity"]["logloss"] > lost["audience"]["logloss"] > 0.02
    rest = [lost[name] for name in lost if name not in ("topic_affinity", "audience")]
    assert all(line == {"logloss": 0, "rises": None} for line in rest)


def test_the_direction_is_the_share_of_changes_that_move_the_score_with_the_value(surface):
    rng = np.random.default_rng(0)
    rows = Matrix(rng.normal(size=(400, 3)).astype(np.float32), np.zeros((400, 0), np.uint64))
    rows.numeric[:40, 0] = np.nan
    label = (rng.random(400) < 0.5).astype(np.float32)
    columns = Columns(("up", "down", "either"), (), ())
    data = replace(
        dataset(surface), columns=columns, matrix=rows, outcomes=(label)[:, None], position=np.zeros(400, int)
    )

    def score(matrix):
        up, down, either = np.nan_to_num(matrix.numeric).T
        return 1 / (1 + np.exp(down - up - either * (np.arange(400) % 2 - 0.5)))

    lost = lost_by(score, data)
    assert (lost["up"]["rises"], lost["down"]["rises"]) == (1.0, 0.0)
    assert 0.3 < lost["either"]["rises"] < 0.7


def test_the_columns_of_a_set_are_permuted_together(surface):
    category = np.arange(1, 601, dtype=np.uint64).reshape(200, 3)
    columns = Columns((), ("a",), (("b", 2),))
    label = (np.arange(200) % 2).astype(np.float32)
    seen = []
    rows = Matrix(np.zeros((200, 0), np.float32), category)
    data = replace(
        dataset(surface), columns=columns, matrix=rows, outcomes=(label)[:, None], position=np.zeros(200, int)
    )
    importance(lambda matrix: (seen.append(matrix.category), np.full(200, 0.5))[1], data)
    whole, without_a, without_b = seen
    np.testing.assert_array_equal(whole, category)
    assert (without_a[:, 0] != category[:, 0]).any()
    np.testing.assert_array_equal(without_a[:, 1:], category[:, 1:])
    assert (without_b[:, 1] != category[:, 1]).any()
    # All columns of a row stay together.
    np.testing.assert_array_equal(without_b[:, 2] - without_b[:, 1], np.ones(200))
    np.testing.assert_array_equal(without_b[:, 0], category[:, 0])


def test_every_feature_is_measured_the_most_missed_first(surface):
    data = dataset(surface, num_slates=60)
    rng = np.random.default_rng(1)
    from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn

    encoder = Encoder(
        tuple(NumericColumn(name) for name in data.columns.numeric),
        tuple(SingleColumn(name, ("en", "fr"), 2) for name in data.columns.single),
        tuple(MultiColumn(name, width, ("x",)) for name, width in data.columns.multi),
    )
    model = Model(encoder, random_network(rng, encoder, NetworkConfig(width=4)), [UNCALIBRATED])

    def score(matrix):
        return model.shares(matrix)[:, 0]

    lines = importance(score, data)
    assert {line["feature"] for line in lines} == set(surface.features)
    assert [line["logloss"] for line in lines] == sorted((line["logloss"] for line in lines), reverse=True)
    assert lines == importance(score, data)
