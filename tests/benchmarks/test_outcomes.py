"""Test what is measured of several outcomes, on a made-up network."""

from __future__ import annotations

import types

import numpy as np
import pytest

from benchmarks import outcomes
from benchmarks.world import earned
from serve.features.surface import load_surface
from training.evaluation.slates import Slates
from training.world.population import MINUTE_MS
from training.world.world import World

START_MS = 1_767_571_200_000
LOOKED = 1 / (1 + np.arange(3) / 12)
# Two slates of three rows. Rooms that are joined most are hidden most.
TRUTH = {
    "p_join": np.array([0.3, 0.2, 0.1, 0.4, 0.3, 0.1]),
    "p_hide": np.array([0.02, 0.0, 0.0, 0.03, 0.001, 0.001]),
    "minutes": np.array([10.0, 20.0, 30.0, 10.0, 20.0, 30.0]),
}


@pytest.fixture(scope="module")
def world():
    return World(seed=0, viewers=2, start_ms=START_MS, end_ms=START_MS + MINUTE_MS)


@pytest.fixture
def measured(monkeypatch, world):
    """Return what is measured of networks that know the truth, with some windows open."""
    amounts = {"join": TRUTH["p_join"], "stay": TRUTH["p_join"] * TRUTH["minutes"], "hide": TRUTH["p_hide"]}
    happened = np.array([[1, 0.5, 0], [0, 0, 0], [0, 0, 0], [1, np.nan, 1], [1, 0.2, np.nan], [0, 0, 0]])

    def trained(log, surface, model, seed):
        columns = [list(outcomes.WEIGHTS).index(name) for name in surface.predicted]
        scores = np.stack([amounts[name] for name in surface.predicted], axis=1).astype(np.float32)
        data = types.SimpleNamespace(
            outcomes=happened[:, columns], slate=np.repeat([0, 1], 3), viewer=np.repeat([0, 1], 3)
        )
        return {}, data, scores, TRUTH

    monkeypatch.setattr(outcomes, "trained", trained)
    provenance = types.SimpleNamespace(world=lambda: world)
    monkeypatch.setattr(outcomes.Provenance, "read", lambda log: provenance)
    return lambda path, weights: outcomes._measured(path, weights, 0)


def test_the_surface_predicts_the_outcomes_that_are_weighed():
    assert [*load_surface(outcomes.SURFACE).predicted] == ["join"]
    assert outcomes.weighed(outcomes.WEIGHTS).worth == outcomes.WEIGHTS
    assert outcomes.weighed({"hide": -5.0}).worth == {"hide": -5.0}


def test_an_order_earns_what_is_looked_at(world):
    slates = Slates(np.zeros(6, np.float32), *2 * [np.repeat([0, 1], 3)])
    joins, minutes, hides = earned(np.array([2, 1, 0, 3, 4, 5]), slates, TRUTH, world)
    rows = np.array([[2, 1, 0], [3, 4, 5]])
    assert joins == pytest.approx((TRUTH["p_join"][rows] @ LOOKED).mean())
    assert minutes == pytest.approx(((TRUTH["p_join"] * TRUTH["minutes"])[rows] @ LOOKED).mean())
    assert hides == pytest.approx((TRUTH["p_hide"][rows] @ LOOKED).mean())


def test_each_outcome_is_measured_on_the_rows_where_it_is_known(measured, tmp_path):
    told, _ = measured(tmp_path / "log", outcomes.WEIGHTS)
    assert [line["outcome"] for line in told] == ["join", "stay", "hide"]
    # Of stays, of six pairs one is lost and two are ties.
    assert [line["auc"] for line in told] == pytest.approx([1.0, 4 / 6, 1.0])
    assert [line["correlation"] for line in told] == pytest.approx([1.0, 1.0, 1.0])


def test_a_heavier_weight_trades_joins_for_hides(measured, tmp_path):
    _, orders = measured(tmp_path / "log", outcomes.WEIGHTS)
    assert [line["hide"] for line in orders] == [*outcomes.HIDE_WEIGHTS]
    joins, hides = ([line[name] for line in orders] for name in ("joins", "hides"))
    assert joins == sorted(joins, reverse=True)
    assert hides == sorted(hides, reverse=True)
    assert joins[-1] < joins[0]
    assert hides[-1] < 0.9 * hides[0]
    _, alone = measured(tmp_path / "log", {"join": 1.0})
    assert alone == orders[:1]
    assert measured(tmp_path / "log", {"hide": -5.0})[1] == []
