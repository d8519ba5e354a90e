"""Test the comparison of what is said with the truth, in worlds that break what methods assume."""

from __future__ import annotations

import pytest

from benchmarks import world

pytestmark = [pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof]


def test_each_world_shows_what_it_breaks():
    found = world.worlds(60_000, seed=0)
    assert found.keys() == world.WORLDS.keys()
    for line in found.values():
        assert 0 <= line["joins"] < line["oracle's"] or line["true theta"] == 1.0
    # Where nothing depends on the position, no order earns more joins.
    unbiased = found["it knew more, no position bias"]
    assert unbiased["joins"] == pytest.approx(0.0, abs=1e-9)
    assert unbiased["theta"] < 0.8
    lines = world.table(found).splitlines()
    assert len(lines) == 1 + len(world.WORLDS)
