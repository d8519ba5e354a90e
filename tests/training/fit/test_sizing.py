from __future__ import annotations

import pytest

from training.fit.loop import FitConfig, State
from training.fit.sizing import advice, sized
from training.search.space import Space


def history(*losses: float) -> State:
    """Return the state after epochs of these validation loglosses."""
    return State(history=[{"epoch": i + 1, "valid_logloss": loss} for i, loss in enumerate(losses)])


def test_fewer_rows_get_smaller_batches_and_more_epochs():
    found = [sized(num_rows) for num_rows in (1, 5_000, 80_000, 500_000, 5_000_000)]
    assert [config.batch_size for config in found] == sorted(config.batch_size for config in found)
    assert [config.epochs for config in found] == sorted((c.epochs for c in found), reverse=True)
    assert found[0].batch_size < found[-1].batch_size
    assert found[1].epochs > found[-1].epochs


@pytest.mark.parametrize("num_rows", [40_000, 80_000, 5_000_000])
def test_weight_decay_forgets_in_the_same_number_of_epochs(num_rows):
    for given in ({}, {"batch_size": 512}, {"learning_rate": 0.01}):
        config = sized(num_rows, **given)
        steps = num_rows / config.batch_size
        assert config.learning_rate * config.weight_decay * steps == pytest.approx(
            sized(1_000_000).learning_rate
            * sized(1_000_000).weight_decay
            * 1_000_000
            / sized(1_000_000).batch_size
        )


def test_the_weight_decay_of_few_rows_is_bounded_as_that_of_a_search():
    most = Space(5_000).distributions["weight_decay"].high
    assert [sized(num_rows).weight_decay for num_rows in (1, 128, 500, 1_250)] == [most] * 4


def test_given_settings_take_precedence():
    config = sized(5_000, epochs=2, batch_size=64, weight_decay=0.5, seed=3)
    assert (config.epochs, config.batch_size, config.weight_decay, config.seed) == (2, 64, 0.5, 3)


def test_a_loss_that_still_falls_is_a_reason_to_search():
    config = FitConfig(epochs=3)
    (reason,) = advice(history(0.5, 0.4, 0.39), config, num_rows=1_000_000, num_parameters=1_000)
    assert "`training search`" in reason
    assert "still fell by 2.5% in the last of 3 epochs" in reason
    assert advice(history(0.5, 0.4, 0.4), config, 1_000_000, 1_000) == []


def test_few_rows_for_each_parameter_are_a_reason_to_search():
    (reason,) = advice(history(0.5), FitConfig(epochs=1), num_rows=87_530, num_parameters=6_672)
    assert "87,530 training rows are 13 for each of the network's 6,672 parameters" in reason


def test_what_one_process_trains_in_a_minute_needs_no_ray():
    assert [sized(num_rows).num_workers for num_rows in (1, 10_000, 100_000, 5_000_000)] == [0, 0, 0, 1]
    # The epochs count too, and a given number takes precedence.
    assert sized(100_000, epochs=100).num_workers == 1
    assert sized(10_000, num_workers=1).num_workers == 1
