from __future__ import annotations

from dataclasses import replace

import torch

from training.bench.fit import CONFIG, bench_fit, table


def test_each_number_of_threads_has_a_speed_and_a_logloss():
    small = replace(CONFIG, network=replace(CONFIG.network, width=4, n_steps=1), epochs=1, batch_size=512)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    result = bench_fit(rows=1_024, valid_rows=500, config=small, rounds=1)
    torch.set_num_threads(threads)
    assert result["rows_per_s"].keys() == result["valid_logloss"].keys() == {"1", "2"}
    assert all(value > 0 for value in result["rows_per_s"].values())
    lines = table(result).splitlines()
    assert (lines[0], len(lines)) == ("1,024 rows of 40 columns, 1 epochs", 3)
