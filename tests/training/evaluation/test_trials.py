"""Trials of a search on the page of its model."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.evaluation_rows import TRIALS
from training.evaluation.trials import explained, page_parts

WINNER = "TabNet 3"


def cells(html):
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_each_trial_is_shown_with_its_parameters_the_best_first_and_the_winner_marked():
    _, told = page_parts({"trials": TRIALS, "winner": WINNER})
    head, *rows = cells(told)
    measured = "status|logloss|AUC|NDCG@10|µs a candidate|row passes|epochs|seconds"
    assert "|".join(head[1:]) == f"{measured}|width|mask_type|learning_rate"
    assert "|".join(rows[0]) == f"{WINNER}|winner|0.2000|0.7000|–|1.25|1,234,567|20 of 20|3.0|32|entmax|0.02"
    assert [row[0] for row in rows] == [f"TabNet {k}" for k in (3, 6, 2, 8, 1, 7, 5, 4)]
    assert [row[1] for row in rows[-2:]] == ["stopped early", "failed: Diverged: the loss is not finite"]
    assert rows[-2][7] == "5 of 20"


def test_a_plot_a_parameter_shows_the_winner_and_what_explains_the_losses_comes_first():
    plots, _ = page_parts({"trials": TRIALS, "winner": WINNER})
    given = [json.loads(text) for text in re.findall(r'"application/json">(.*?)</script>', plots)]
    # A parameter that never changed cannot matter.
    assert [one["x"]["title"] for one in given] == ["width", "learning_rate"]
    assert [one["x"]["log"] for one in given] == [False, True]
    assert [one["x"]["whole"] for one in given] == [True, False]
    for one in given:
        assert {line["name"]: len(line["x"]) for line in one["series"]} == {
            "finished": 5,
            "stopped early, by its last epoch": 1,
            "winner": 1,
        }


def test_few_trials_are_not_plotted_and_a_report_of_before_has_none():
    plots, told = page_parts({"trials": TRIALS[:4], "winner": WINNER})
    assert (plots, "TabNet 4" in told) == ("", True)
    assert page_parts({"winner": WINNER}) == []


@pytest.mark.parametrize(
    ("values", "losses", "share"),
    [
        ([1, 1, 2, 2], [0.1, 0.1001, 0.9, 0.95], 0.8),
        (["a", "b", "a", "b"], [0.1, 0.2, 0.3, 0.4], 0.2),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1, 2, 3, 4, 5, 6], 0.914),
        ([5, 5, 5], [0.1, 0.2, 0.3], 0.0),
        ([1, 2], [0.3, 0.3], 1.0),
    ],
)
def test_the_explained_share_is_eta_squared_of_the_ranks(values, losses, share):
    assert explained(values, losses) == pytest.approx(share, abs=1e-3)
