from __future__ import annotations

import numpy as np
import pyarrow as pa

from serve.contract.hashing import hash64
from serve.features.kinds.affinity import Maps
from serve.features.rows import Schema
from serve.log.reader import read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from tests.support.row_values import audience
from tests.support.small_surface import tables


def replay(log_folder, surface):
    return Replay(Schema(surface), read_log(log_folder, surface))


def test_a_record_is_seen_strictly_after_its_time(log_folder, surface):
    run = replay(log_folder, surface)
    run.advance(12_000)
    assert audience(run.state.schema, run.state.candidates, ["a"], 12_000) == [0]
    run.advance(12_001)
    assert audience(run.state.schema, run.state.candidates, ["a"], 12_001) == [1]


def test_a_candidate_is_nobody_before_its_row_came(log_folder, surface):
    run = replay(log_folder, surface)
    # a, d (known from 15 s), zz (never known).
    shown = np.arange(run.first[1], run.first[2])
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
    # Both have a row without a time, which holds from the start.
    assert known == {"ann", "bob"}
    assert not run.known["candidate"][run.state.candidates.index["zz"]]


def test_a_viewers_maps_hold_what_they_were_shown_and_what_they_did(log_folder, surface):
    run = replay(log_folder, surface)
    run.finish()
    maps = run.state.schema.kept(Maps)
    topics = next(m for m in maps.slots if m.field.name == "topic")
    held = {}
    for viewer in ("ann", "bob"):
        row = maps.of(run.state.viewers.table, topics)[run.state.viewers.index[viewer]]
        entries = zip(*(row[part] for part in ("keys", "event", "over", "ms")), strict=True)
        held[viewer] = {
            int(key): tuple(round(v * 2 ** ((ms - 60_000) / topics.half_life_ms)) for v in (event, over))
            for key, event, over, ms in entries
            if key
        }
    news, jazz = hash64("news"), hash64("jazz")
    # ann was shown a (news), b, c (jazz), then b, a, and joined a and b.
    # bob was shown a, d (news), and joined d.
    assert held == {"ann": {news: (1, 2), jazz: (1, 3)}, "bob": {news: (1, 2)}}


def test_an_event_is_never_earlier_than_its_exposure(tmp_path, surface):
    parts = tables()
    # e2, at 9 s, is a join of r1, which was shown at 10 s.
    behind = pa.array([11_000, 9_000, 21_000, 45_000, 60_000], pa.int64())
    parts["events"] = parts["events"].set_column(1, "ts_ms", behind)
    write_log(tmp_path / "log", parts)
    run = replay(tmp_path / "log", surface)
    run.advance(10_000)
    assert audience(run.state.schema, run.state.candidates, ["a"], 10_000) == [0]
    run.advance(10_001)
    assert audience(run.state.schema, run.state.candidates, ["a"], 10_001) == [1]
