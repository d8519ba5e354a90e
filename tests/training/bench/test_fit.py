from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.bench.fit import CONFIG, bench_fit, table


@pytest.fixture(scope="module")
def result():
    small = replace(CONFIG, network=replace(CONFIG.network, width=4, n_steps=1), epochs=1, batch_size=512)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield bench_fit(rows=1_024, valid_rows=500, config=small, rounds=1)
    torch.set_num_threads(threads)


def test_every_way_of_training_has_a_speed_and_a_logloss(result):
    speed = result["rows_per_s"]
    # With one thread; with more, each way appears twice.
    assert speed.keys() == {"fit", "plain", "ours"}
    assert result["valid_logloss"].keys() == speed.keys()
    assert all(value > 0 for value in speed.values())
    assert result["ratio_vs_fit"] == pytest.approx(speed["ours"] / speed["fit"])


def test_the_plain_loop_and_ours_make_the_same_steps(result):
    assert result["valid_logloss"]["ours"] == pytest.approx(result["valid_logloss"]["plain"], abs=1e-4)


def test_the_table_names_each_way_and_the_ratio(result):
    text = table(result)
    assert all(name in text for name in result["rows_per_s"])
    assert f"{result['ratio_vs_fit']:.1f} times" in text
