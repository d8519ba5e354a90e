from __future__ import annotations

import numpy as np

from serve.log import read_log
from serve.replay import Replay
from serve.state import Schema


def replay(log_folder, surface):
    return Replay(Schema(surface), read_log(log_folder, surface))


def test_a_record_is_seen_strictly_after_its_time(log_folder, surface):
    run = replay(log_folder, surface)
    gauge = next(j for j, s in enumerate(run.state.schema.sums["candidate"]) if len(s.weights) == 2)
    row = run.state.candidates.index["a"]
    run.advance(12_000)
    assert run.state.candidates.table["sums"][row, gauge] == 0
    run.advance(12_001)
    assert run.state.candidates.table["sums"][row, gauge] == 1


def test_a_candidate_is_nobody_before_its_row_came(log_folder, surface):
    run = replay(log_folder, surface)
    shown = np.arange(run.first[1], run.first[2])  # a, d (from 15 s), zz (never)
    run.advance(15_000)
    assert (run.candidate_rows(shown) > 0).tolist() == [True, False, False]
    run.advance(15_001)
    assert (run.candidate_rows(shown) > 0).tolist() == [True, True, False]


def test_step_by_step_and_at_once_end_in_the_same_state(log_folder, surface):
    at_once, stepped = replay(log_folder, surface), replay(log_folder, surface)
    at_once.finish()
    for ts_ms in range(0, 70_000, 500):
        stepped.advance(ts_ms)
    for entity in ("viewers", "candidates"):
        ours, theirs = getattr(at_once.state, entity).table, getattr(stepped.state, entity).table
        assert ours.tobytes() == theirs.tobytes()


def test_viewers_without_a_record_stay_unknown(log_folder, surface):
    run = replay(log_folder, surface)
    run.advance(10_000)
    known = {name for name, row in run.state.viewers.index.items() if run.known["viewer"][row]}
    assert known == {"ann", "bob"}  # both have a row that holds since ever
    assert not run.known["candidate"][run.state.candidates.index["zz"]]
