"""Test the stored statistics of training rows, and the drift of later rows from them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from serve.contract.hashing import hash64
from serve.features.slots import FieldRef
from serve.model.compatibility import asked_fields
from tests.support.evaluation_rows import dataset, truth
from training.evaluation.drift import CHANGED, MOVED, drift, psi, reading, rows_needed, statistics
from training.fit.prepare import take_evenly


@pytest.fixture(scope="module")
def data(surface):
    return dataset(surface)


def kept(data, score=None):
    """Return the statistics as they come back from an artifact."""
    found = statistics(data.columns, data.matrix, truth(data) if score is None else score)
    return json.loads(json.dumps(found, allow_nan=False))


def against(made_from, data, ranking=None, **changed):
    matrix = replace(data.matrix, **changed)
    ranking = np.arange(len(data)) if ranking is None else ranking
    return drift(made_from, data.columns, matrix, truth(data, matrix), ranking)


def test_a_model_asks_requests_for_what_its_training_rows_had(data, surface):
    def asked(made_from):
        evaluation = json.dumps({} if made_from is None else {"statistics": made_from}).encode()
        return asked_fields(SimpleNamespace(read=lambda name: evaluation), surface)

    hour, hour_field = data.matrix.numeric[:, data.columns.numeric.index("hour")], FieldRef("context", "hour")
    before = hour.copy()
    for share, named in ((0.0, True), (0.005, True), (0.05, False)):
        hour[:] = 3.0
        hour[: int(share * len(hour))] = np.nan
        assert (hour_field in asked(kept(data))) == named
    hour[:] = before
    # An artifact of an earlier release, or a broken one.
    assert asked(None) == ()
    assert asked_fields(SimpleNamespace(read=lambda name: b""), surface) == ()


def test_the_rows_that_it_was_made_from_have_not_moved(data):
    found = against(kept(data), data)
    sets = [name for name, _ in data.columns.multi]
    assert set(found["features"]) == {*data.columns.numeric, *data.columns.single, *sets}
    assert max(found["features"].values()) == found["score"] == 0.0
    assert found["rows"] == found["training_rows"] == len(data)


def test_rows_of_the_same_process_have_moved_by_chance_alone(data, surface):
    other = dataset(surface, seed=1)
    found = against(kept(data), other)
    assert 0.0 < max(found["features"].values()) < MOVED
    assert 0.0 < found["score"] < MOVED


def test_drift_shows_in_the_moved_feature_and_in_dependent_scores(data):
    numeric = data.matrix.numeric.copy()
    numeric[:, data.columns.numeric.index("topic_affinity")] += 1.0
    found = against(kept(data), data, numeric=numeric)
    moved = {name for name, index in found["features"].items() if index > CHANGED}
    assert moved == {"topic_affinity"}
    assert found["score"] > CHANGED


def test_a_number_that_goes_missing_has_moved(data):
    numeric = data.matrix.numeric.copy()
    # A quarter of the rows.
    numeric[:600, 0] = np.nan
    name = data.columns.numeric[0]
    assert against(kept(data), data, numeric=numeric)["features"][name] > CHANGED
    cells = kept(replace(data, matrix=replace(data.matrix, numeric=numeric)))["numeric"][name]
    assert cells["shares"][0] == pytest.approx(0.25)
    assert cells["shares"][2:] == pytest.approx([0.075] * 10, abs=0.001)


def test_a_cell_ends_with_the_value_that_is_its_decile(data):
    numeric = data.matrix.numeric.copy()
    numeric[:, 0] = np.arange(len(data)) % 20
    cells = kept(replace(data, matrix=replace(data.matrix, numeric=numeric)))["numeric"][
        data.columns.numeric[0]
    ]
    shares = [0.0, 0.0, *[pytest.approx(0.1)] * 10]
    assert cells == {"common": None, "deciles": list(range(1, 19, 2)), "shares": shares}


def test_a_value_that_most_rows_have_is_a_cell_of_its_own(data):
    numeric = data.matrix.numeric.copy()
    numeric[:, 0] = np.where(np.arange(len(data)) % 4 == 0, numeric[:, 0], 0.0)
    made_from = kept(replace(data, matrix=replace(data.matrix, numeric=numeric)))
    name = data.columns.numeric[0]
    cells = made_from["numeric"][name]
    assert cells["common"] == 0.0
    assert cells["shares"][1] == pytest.approx(0.75)
    assert cells["shares"][2:] == pytest.approx([0.025] * 10, abs=0.001)
    moved = numeric.copy()
    moved[numeric[:, 0] == 0.0, 0] = 1e-6
    assert against(made_from, data, numeric=numeric)["features"][name] == 0.0
    assert against(made_from, data, numeric=moved)["features"][name] > CHANGED


def test_a_constant_has_a_cell_and_no_deciles(data):
    numeric = data.matrix.numeric.copy()
    numeric[:, 0] = 7.0
    cells = kept(replace(data, matrix=replace(data.matrix, numeric=numeric)))["numeric"][
        data.columns.numeric[0]
    ]
    assert cells == {"common": 7.0, "deciles": [], "shares": [0.0, 1.0, 0.0]}


def test_categories_beyond_the_most_common_are_the_rest(data):
    k = data.columns.single.index("topic")
    category = data.matrix.category.copy()
    names = np.array([hash64(f"topic {i}") for i in range(30)], np.uint64)
    category[:, k] = names[np.minimum(np.arange(len(data)) % 60, 29)]
    made_from = kept(replace(data, matrix=replace(data.matrix, category=category)))
    cells = made_from["category"]["topic"]
    assert cells["values"][0] == f"#{names[29]:016x}"
    assert len(cells["values"]) == 20
    assert cells["shares"][:2] == [0.0, pytest.approx(31 / 60)]
    assert cells["shares"][-1] == pytest.approx(10 / 60)
    new = np.where(category == names[29], np.uint64(hash64("new")), category)
    assert against(made_from, data, category=new)["features"]["topic"] > CHANGED


def test_a_set_counts_each_of_its_values_and_the_rows_without_one(data):
    at = len(data.columns.single)
    category = data.matrix.category.copy()
    category[: len(data) // 2, at : at + 2] = [hash64("x"), hash64("y")]
    cells = kept(replace(data, matrix=replace(data.matrix, category=category)))["category"]["tags"]
    assert cells["shares"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])


def test_the_index_is_the_formulas():
    expected, found = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    by_hand = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5)
    assert psi(expected, found) == pytest.approx(by_hand)
    assert np.isfinite(psi(np.array([0.0, 1.0]), np.array([1.0, 0.0])))
    assert [reading(x) for x in (0.05, 0.2, 0.3)] == ["as in training", "has moved", "has changed"]


def test_few_of_many_rows_are_kept_from_the_first_to_the_last(data):
    few = take_evenly(data.matrix, 10)
    assert len(few.numeric) == len(few.category) == 10
    assert few.numeric[-1].tolist() == data.matrix.numeric[-1].tolist()
    assert len(take_evenly(data.matrix, 10**6).numeric) == len(data)


def test_on_fewer_rows_than_it_needs_no_feature_is_judged(data):
    few = take_evenly(data.matrix, 10)
    found = drift(kept(data), data.columns, few, truth(data, few), np.arange(10))
    assert {*found["features"].values(), found["score"]} == {None}
    assert (found["judged"], found["not_judged"]["price"]) == (0, {"rows": 10, "needed": 239})


def test_what_a_viewer_has_counts_once_a_ranking(data):
    made_from, slate = kept(data), np.arange(len(data)) // 6
    few = replace(data.matrix, numeric=data.matrix.numeric[:240], category=data.matrix.category[:240])
    found = drift(made_from, data.columns, few, truth(data, few), slate[:240])
    # 40 rankings, each of one viewer with one language, and 240 prices.
    assert found["not_judged"]["viewer_language"]["rows"] == 40
    assert found["features"]["viewer_language"] is None
    assert found["features"]["price"] < MOVED


@pytest.mark.parametrize(("num_rankings", "is_judged"), [(100, False), (200, True)])
def test_rankings_of_many_sizes_count_less_than_their_number(data, num_rankings, is_judged):
    rng, made_from = np.random.default_rng(0), kept(data)
    column = data.columns.single.index("viewer_language")
    known = np.unique(data.matrix.category[:, column])
    found = []
    for _ in range(50):
        sizes = rng.geometric(0.1, num_rankings)
        few = take_evenly(data.matrix, int(sizes.sum()))
        # Each viewer has one language in all rows, drawn as in training.
        few.category[:, column] = np.repeat(rng.choice(known, num_rankings), sizes)
        ranking = np.repeat(np.arange(num_rankings), sizes)
        found.append(drift(made_from, data.columns, few, truth(data, few), ranking))
    indices = [one["features"]["viewer_language"] for one in found]
    assert [index is not None for index in indices] == [is_judged] * len(found)
    if is_judged:
        assert np.mean([index >= MOVED for index in indices]) < 0.05


@pytest.mark.parametrize("training_rows", [1_000, 3_000, 10**7])
@pytest.mark.parametrize("cells", [2, 3, 10, 22])
def test_on_as_many_rows_as_it_needs_rows_as_in_training_seldom_have_moved(cells, training_rows):
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(cells, 5.0))
    num = rows_needed(truth, training_rows)
    trained, served = (rng.multinomial(n, truth, 2_000) / n for n in (training_rows, num))
    assert np.mean([psi(*shares) >= MOVED for shares in zip(trained, served, strict=True)]) < 0.05
    assert rows_needed([*truth, 0.0], training_rows) == num


def test_the_rows_that_are_needed_grow_as_training_rows_are_few():
    assert rows_needed([1.0], 10**7) == rows_needed([0.5, 0.5], 10**7) == 53
    eleven = [1 / 11] * 11
    assert [rows_needed(eleven, n) for n in (10**7, 10_000, 1_000, 235, 234)] == [235, 240, 306, 65_830, None]
