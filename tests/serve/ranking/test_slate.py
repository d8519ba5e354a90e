"""Tests of the stage re-rank with a rule that turns every order around."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from serve.config.settings import Arm, Experiment
from serve.ranking import slate
from tests.support.live_service import Live
from tests.support.stub_artifact import MODEL


@pytest.fixture
def turned(monkeypatch):
    """Apply a rule that turns an order around."""
    monkeypatch.setattr(slate, "RULES", (lambda query, candidates, order: order[::-1],))


def reranked(order, score, ended):
    return slate.rerank(None, None, np.array(order), np.array(score), np.array(ended)).tolist()


def test_without_rules_an_order_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(slate, "RULES", ())
    order = np.array([2, 0, 1])
    assert slate.rerank(None, None, order, np.ones(3), np.zeros(3, bool)) is order


def test_rules_change_an_order_one_after_the_other(monkeypatch):
    first_last = lambda query, candidates, order: np.roll(order, -1)  # noqa: E731
    monkeypatch.setattr(slate, "RULES", (first_last, lambda query, candidates, order: order[::-1]))
    assert reranked([0, 1, 2], [0.3, 0.2, 0.1], [False] * 3) == [0, 2, 1]


def test_candidates_without_a_score_stay_last_whatever_a_rule_does(turned):
    assert reranked([2, 0, 1, 3], [0.2, np.nan, 0.3, np.nan], [False, True, False, False]) == [0, 2, 1, 3]


def test_in_an_order_without_scores_ended_candidates_stay_last(turned):
    assert reranked([2, 0, 1], [np.nan] * 3, [False, True, False]) == [0, 2, 1]


def drawn(tmp_path, log_folder):
    """Return an answer whose order was drawn, and the propensities in the log."""

    async def ranked(service):
        return await service.rank()

    service = Live(tmp_path, log_folder, clock="wall")
    arm = Arm("model", MODEL, 1.0, explore=1.0)
    service.config = replace(service.config, experiment=Experiment("launch", "s", (arm,)))
    answer = service.run(ranked)
    (path,) = (tmp_path / "served" / "exposures").glob("*.parquet")
    (logged,) = pq.read_table(path).to_pylist()
    assert logged["candidates"] == [each["candidate"] for each in answer["ranking"]]
    return logged["propensity"]


def test_a_drawn_order_is_logged_with_its_propensities(tmp_path, log_folder):
    assert len(drawn(tmp_path, log_folder)) == 3


def test_a_drawn_order_that_a_rule_changed_is_logged_as_not_drawn(tmp_path, log_folder, turned):
    assert drawn(tmp_path, log_folder) is None
