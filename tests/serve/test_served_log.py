"""What a service logs, replayed: the state that it left, and the very features that it ranked with."""

from __future__ import annotations

import numpy as np
import pytest
from served import Logging, assert_same_state, assert_served_features, busy_hour

from serve.load import load


@pytest.fixture
def service(tmp_path, log_folder):
    service = Logging(tmp_path, log_folder)
    service.run(busy_hour)
    return service


def test_a_replay_of_the_log_ends_in_the_state_of_the_store(service):
    replay = service.replay()
    replay.finish()
    assert_same_state(service.stored(), replay)


def test_every_ranking_saw_the_features_that_the_log_gives(service):
    assert len(assert_served_features(service, service.replay())) == 60


def test_a_store_that_is_filled_from_the_log_is_the_one_that_was_served_from(service):
    before = service.stored()
    load(service.surface, service.folder / "log", "lmdb:store", service.folder)
    for ours, theirs in zip(before, service.stored(), strict=True):
        assert set(ours.index) == set(theirs.index)
        for name, row in ours.index.items():
            sums = theirs.table["sums"][theirs.index[name]]
            np.testing.assert_allclose(ours.table["sums"][row], sums, rtol=1e-9, atol=1e-9)
