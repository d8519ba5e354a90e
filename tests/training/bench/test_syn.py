import json
import math

import numpy as np
import pytest
import torch

from training.bench.syn import PAPER, bench_syn, draw, exponent, table, train_scorer
from training.evaluation.slates import auc
from training.fit.loop import FitConfig
from training.network.network import NetworkConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result():
    return bench_syn(sets=("syn1", "syn5"), seeds=(0, 1), num_train=600, num_test=400, epochs=1)


def drawn(name, num_rows=200_000):
    return draw(name, num_rows, np.random.default_rng(5))


def row(**columns):
    x = np.zeros((1, 11))
    for name, value in columns.items():
        x[0, int(name[1:]) - 1] = value
    return x


@pytest.mark.parametrize(
    ("name", "x", "z"),
    [
        ("syn1", row(X1=2.0, X2=-1.5, X11=1.0), -3.0),
        ("syn2", row(X3=1.0, X4=-2.0, X5=0.5, X6=0.5, X11=-1.0), 1.5),
        ("syn3", row(X7=1.0, X8=-2.0, X9=0.5, X10=-1.0), -10 * math.sin(0.2) + 2 + 0.5 + math.e - 2.4),
    ],
)
def test_the_exponent_is_the_formula_computed_by_hand(name, x, z):
    assert exponent(name, x) == pytest.approx([z])


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [("syn4", "syn1", "syn2"), ("syn5", "syn1", "syn3"), ("syn6", "syn2", "syn3")],
)
def test_the_eleventh_column_switches_the_exponent_and_zero_is_above(name, below, above):
    x = drawn(name, 500).x
    x[0, 10] = 0.0
    expected = np.where(x[:, 10] < 0, exponent(below, x), exponent(above, x))
    assert np.array_equal(exponent(name, x), expected)


def test_labels_come_up_with_one_over_one_plus_the_exponential():
    rows = drawn("syn2", 1_000)
    assert rows.probability == pytest.approx(1 / (1 + np.exp(exponent("syn2", rows.x))))
    for name in PAPER:
        rows = drawn(name)
        expected = rows.probability.mean()
        assert rows.label.mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(rows.label)))


def test_the_true_probability_beats_the_paper_by_less_than_a_twentieth():
    # This distinguishes Syn3's three published forms: with the other two the gap is 0.09 or more.
    for name, paper in PAPER.items():
        rows = drawn(name)
        bayes = auc(rows.label, rows.probability)
        assert paper < bayes < paper + 0.05


def test_the_columns_are_standard_normal_and_independent():
    x = drawn("syn1").x
    assert x.shape[1] == 11
    assert np.abs(x.mean(axis=0)).max() < 0.01
    assert np.abs(np.cov(x.T) - np.eye(11)).max() < 0.02


def test_a_trained_network_generalises_to_rows_it_has_not_seen():
    network = NetworkConfig(width=4, n_steps=2, mask_type="sparsemax", virtual_batch_size=100, momentum=0.3)
    score = train_scorer(drawn("syn3", 2_000), FitConfig(network=network, epochs=6, batch_size=100))
    test = draw("syn3", 4_000, np.random.default_rng(6))
    assert auc(test.label, score(test.x)) > 0.75


def test_a_result_has_each_set_beside_the_paper(result):
    assert result["sets"].keys() == {"syn1", "syn5"}
    # One epoch of 600 rows is too little.
    assert result["held"] is False
    assert result["machine"]["cores"] >= 1
    for name, found in result["sets"].items():
        assert len(found["aucs"]) == 2
        assert found["aucs"][0] != found["aucs"][1]
        assert found["auc"] == pytest.approx(sum(found["aucs"]) / 2)
        assert found["paper"] == PAPER[name]
        assert found["difference"] == pytest.approx(found["auc"] - PAPER[name])
        assert found["bayes"] > found["auc"]
        assert found["held"] is (found["difference"] >= -0.01)
    json.dumps(result)


def test_the_same_seed_gives_the_same_figures(result):
    again = bench_syn(sets=("syn5",), seeds=(1,), num_train=600, num_test=400, epochs=1)
    assert again["sets"]["syn5"]["aucs"] == result["sets"]["syn5"]["aucs"][1:]


def test_the_table_has_a_line_for_each_set_and_marks_a_low_one(result):
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["syn1", "syn5"]
    assert lines[1].endswith("too low")
    assert "does not hold" in lines[-1]
    fine = {"auc": 0.69, "paper": 0.682, "difference": 0.008, "bayes": 0.7, "seconds": 1.0, "held": True}
    good = table({"sets": {"syn1": fine}, "held": True, "seconds": 1.0})
    assert "too low" not in good
    assert good.splitlines()[-1].startswith("holds")
