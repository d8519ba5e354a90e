from __future__ import annotations

import pytest

from serve.contract.errors import TabrankError
from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.cost import Costs
from training.search.leaderboard import BoardEntry
from training.search.space import SMALLEST, Space
from training.search.trials import check_cost

WIDE = NetworkConfig(width=64)


class Busy:
    """Machine on which each measurement takes longer than the one before."""

    def __init__(self) -> None:
        self.us = 1.0

    def __call__(self, network: NetworkConfig) -> float:
        self.us += 1.0
        return self.us


def test_a_shape_costs_what_it_cost_when_it_was_first_measured():
    costs = Costs(Busy(), [])
    assert [costs(SMALLEST), costs(WIDE), costs(SMALLEST)] == [2.0, 3.0, 2.0]


def test_what_an_earlier_call_measured_stays():
    point = Space(150_000).point(FitConfig(network=SMALLEST))
    unmeasured = BoardEntry("TabNet 1", "tabnet", 0.4, point=point)
    past = [unmeasured, BoardEntry("TabNet 2", "tabnet", 0.4, us_per_candidate=0.7, point=point)]
    assert Costs(Busy(), past)(SMALLEST) == 0.7


def test_a_cost_below_that_of_the_smallest_network_is_refused():
    costs = Costs(Busy(), [])
    check_cost(costs, 2.0)
    # The cost is not measured again.
    check_cost(costs, 2.0)
    with pytest.raises(TabrankError, match=r"--max-us-per-candidate 1.5: the smallest network takes 2.00 µs"):
        check_cost(costs, 1.5)
