from __future__ import annotations

import numpy as np
import pytest

from serve.contract.errors import TabrankError
from serve.features.baseline import Baseline
from serve.features.surface import load_surface, read_surface
from tests.support.small_surface import TOML

NAMES = ["a", "b", "c"]


def declared(rule: str):
    return read_surface(f"{TOML}\n[baseline]\n{rule}\n", "tiny.toml")


def test_a_sort_compares_feature_after_feature_exactly_and_missing_values_come_last():
    rng = np.random.default_rng(0)
    # Neighbours in float32, so that no sum of weights could tell them apart.
    values = np.array([np.nan, -1e30, 0.0, 1.0, np.nextafter(np.float32(1), np.float32(2)), 1e30], np.float32)
    numeric = rng.choice(values, (400, 3))
    worth = Baseline(sort=("c", "a")).worth(NAMES, numeric)
    least = [tuple(-np.inf if np.isnan(x) else float(x) for x in row[[2, 0]]) for row in numeric]
    for i, j in rng.integers(0, 400, (3_000, 2)).tolist():
        assert (worth[i] > worth[j]) == (least[i] > least[j])
        assert (worth[i] == worth[j]) == (least[i] == least[j])


def test_weights_add_up_and_a_missing_value_counts_as_0():
    numeric = np.array([[1, np.nan, 3], [np.nan, np.nan, np.nan], [1, 2, -3]], np.float32)
    assert Baseline(weights={"c": 2.0, "b": -0.5}).worth(NAMES, numeric).tolist() == [6.0, 0.0, -7.0]


@pytest.mark.parametrize("rule", [Baseline(sort=("a", "b")), Baseline(weights={"a": 0.1, "b": 0.7})])
def test_equal_rows_have_equal_worth_and_no_rows_none(rule):
    row = np.random.default_rng(1).random((1, 3), np.float32)
    assert len(set(rule.worth(NAMES, np.repeat(row, 37, axis=0)).tolist())) == 1
    assert rule.worth(NAMES, np.empty((0, 3), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ('sort = ["audiense"]', "baseline.sort.0: unknown value 'audiense'; did you mean 'audience'?"),
        (
            'sort = ["audience", "topic"]',
            "baseline.sort.1: 'topic' is a category; name a numeric feature",
        ),
        ("weights = { pric = 1 }", "baseline.weights.pric: unknown value 'pric'; did you mean 'price'?"),
        ('weights = { price = "1" }', "baseline.weights.price: '1' must be a number"),
        ('sorted = ["audience"]', "baseline.sorted: unknown key 'sorted'; did you mean 'sort'?"),
        ("", "baseline: state either sort"),
        ('sort = ["price"]\nweights = { price = 1 }', "baseline: state either sort"),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_remedy(rule, said):
    with pytest.raises(TabrankError) as error:
        declared(rule)
    assert f"tiny.toml: {said}" in str(error.value)


def test_a_rule_does_not_change_what_a_model_depends_on():
    plain, ruled = read_surface(TOML), declared('sort = ["follows_host", "audience"]')
    assert ruled.baseline == Baseline(sort=("follows_host", "audience"))
    assert ruled.fingerprint == plain.fingerprint
    assert plain.baseline is None


def test_the_shipped_tab_sorts_by_followed_hosts_then_language_then_audience():
    assert load_surface("spaces").baseline == Baseline(sort=("follows_host", "same_language", "audience"))
    assert load_surface("ranklens").baseline is None
