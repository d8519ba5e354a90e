from __future__ import annotations

import pytest

from training.fit.loop import FitConfig
from training.network.network import NetworkConfig
from training.search.space import Space


@pytest.mark.parametrize("num_rows", [300, 5_000, 150_000, 2_000_000])
def test_every_point_is_a_configuration_and_back(num_rows):
    space = Space(num_rows)
    for choose in (min, max):
        point = space.point(FitConfig())
        for name, distribution in space.distributions.items():
            choices = getattr(distribution, "choices", None)
            point[name] = (
                choose(choices) if choices else getattr(distribution, "low" if choose is min else "high")
            )
        assert space.point(space.config(point, FitConfig())) == point


def test_a_configuration_outside_of_the_space_becomes_its_nearest_point():
    point = Space(150_000).point(FitConfig(NetworkConfig(width=500, n_steps=9), epochs=1, learning_rate=0.9))
    assert (point["width"], point["n_steps"], point["learning_rate"]) == (64, 4, 0.06)
    assert point["epochs"] == Space(150_000).distributions["epochs"].low


def test_the_default_of_fit_is_a_point_for_a_log_of_ordinary_size():
    assert Space(150_000).config(Space(150_000).point(FitConfig()), FitConfig()).network == NetworkConfig()


def test_fewer_rows_mean_narrower_networks_smaller_batches_and_more_epochs():
    few, many = Space(2_000).distributions, Space(2_000_000).distributions
    assert max(few["width"].choices) < max(many["width"].choices)
    assert max(few["batch_size"].choices) < max(many["batch_size"].choices)
    assert few["epochs"].high > many["epochs"].high
