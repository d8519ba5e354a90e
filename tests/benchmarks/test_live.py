"""Test the measures of rooms by age, on made-up orders and on a small world."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from benchmarks import live
from benchmarks.world import trained
from serve.features.surface import load_surface
from training.world.population import MINUTE_MS
from training.world.world import World

START_MS = 1_767_571_200_000


@pytest.fixture(scope="module")
def world():
    return World(seed=0, viewers=2, start_ms=START_MS, end_ms=START_MS + MINUTE_MS)


def test_a_slate_earns_joins_by_its_positions_and_pairs_by_their_order(world):
    p_join = np.array([0.1, 0.7, 0.4])
    joins, won, pairs = live._earned(p_join, world)
    assert joins == pytest.approx(sum(p / (1 + i / 12) for i, p in enumerate(p_join)))
    # Of all outcomes with their chances: pairs of a join and none, and those with the join above.
    expected = np.zeros(2)
    for joined in itertools.product((0, 1), repeat=3):
        chance = np.prod(np.where(joined, p_join, 1 - p_join))
        above = sum(joined[i] > joined[j] for i, j in itertools.combinations(range(3), 2))
        below = sum(joined[i] < joined[j] for i, j in itertools.combinations(range(3), 2))
        expected += chance * np.array([above, above + below])
    assert (won, pairs) == pytest.approx(tuple(expected))


def test_the_groups_are_features_of_the_surface():
    """Else nothing would be left out."""
    assert set(itertools.chain(*live.GROUPS.values())) <= load_surface(live.SURFACE).features.keys()


def made_up(gain, seed, num=400):
    """Return slates of 40 viewers whose joins, and pairs won, rise by about `gain`."""
    rng = np.random.default_rng(seed)
    viewer, pairs = np.arange(num) % 40, rng.uniform(0.5, 1.5, num)
    better = gain + 0.1 * rng.normal(size=num)
    same = {"viewer": viewer, "age": live.YOUNG, "rooms": 5, "slates": 1, "seed": seed, "pairs": pairs}
    models = {live.TODAY: np.zeros(num), live.ALL: better}
    return pd.concat(
        pd.DataFrame(same | {"features": name, "joins": 1 + rise, "won": pairs * (0.6 + rise)})
        for name, rise in models.items()
    )


def test_what_is_lost_has_errors_by_viewer_for_each_seed_and_together(monkeypatch):
    monkeypatch.setattr(live, "AGES", {live.YOUNG: (0, 600)})
    lines = live._lines(pd.concat([made_up(0.02, 0), made_up(0.02, 1)]))
    assert lines.seed.tolist() == [0, 0, 1, 1, "together", "together"]
    without, best = (lines[lines.features == name].set_index("seed") for name in (live.TODAY, live.ALL))
    assert best.rooms.tolist() == [2_000, 2_000, 4_000]
    for measure, before in (("joins", 1.0), ("auc", 0.6)):
        less, error = without[f"{measure}_less"], without[f"{measure}_error"]
        # 400 gains with a standard deviation of 0.1.
        assert error[0] == pytest.approx(0.005, rel=0.35)
        assert error["together"] == pytest.approx(0.005 / np.sqrt(2), rel=0.35)
        assert (abs(less - 0.02) < 4 * error).all()
        assert without[measure].to_numpy() == pytest.approx(before)
        assert best[measure].to_numpy() == pytest.approx(before + less.to_numpy())
    assert (best[["joins_less", "joins_error", "auc_less", "auc_error"]] == 0).all(axis=None)


@pytest.mark.integration
@pytest.mark.no_ray
@pytest.mark.proof
def test_a_world_is_measured_with_and_without_each_group_of_features(monkeypatch):
    monkeypatch.setattr(live, "GROUPS", {"one": ("recent_joins",), "other": ("join_rate", "viewer_joins")})
    seen = []
    monkeypatch.setattr(live, "trained", lambda *given: (seen.append(given[1]), trained(*given))[1])
    found = live.live(60_000, 1)
    names = [live.TODAY, live.ALL, "without one", "without other"]
    assert [line["features"] for line in found["lines"][:4]] == names
    left_out = [{"recent_joins", "join_rate", "viewer_joins"} - surface.features.keys() for surface in seen]
    assert left_out == [
        {"recent_joins", "join_rate", "viewer_joins"},
        set(),
        {"recent_joins"},
        {"join_rate", "viewer_joins"},
    ]
    assert len(found["lines"]) == 2 * len(live.AGES) * len(names)
    rooms = {line["age"]: line["rooms"] for line in found["lines"]}
    assert 0 < rooms["first minute"] < rooms["first ten minutes"] < rooms["older"]
    assert "held" in live.table(found)
