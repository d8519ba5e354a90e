"""Members of sets are found exactly, and `overlap` counts those that two sets share."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.features import batch as batches
from serve.features.batch import MAX_PLACES, SPREAD, Batch
from tests.serve.features.test_matrix import World
from tests.support.kind_world import surface_of

# Hashes that differ in their high bits only share a place, and so do those of 0.
HASHES = st.sampled_from([0, 1, 2, 3, 1 << 63, 2 << 60, (1 << 63) + 1, (1 << 40) + 1, 2**64 - 1])


def among(request_of_row, hashes, sets):
    """Return whether each hash is in the set of its row's request."""
    nothing, times = np.zeros(len(sets), [("x", "<f8")]), np.zeros(len(sets), np.int64)
    batch = Batch({}, nothing, nothing, nothing, np.array(request_of_row, np.int64), times, {})
    rows = np.repeat(np.arange(len(hashes)), hashes.shape[1])
    found = np.zeros(hashes.size, bool)
    found[batch.among(hashes.ravel(), rows, sets)] = True
    return found.reshape(hashes.shape)


@given(st.data(), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_members_are_those_of_the_set_of_the_rows_own_viewer(data, num_requests, width, num):
    sets = [data.draw(st.lists(HASHES, min_size=width, max_size=width)) for _ in range(num_requests)]
    of_row = data.draw(st.lists(st.integers(0, num_requests - 1), max_size=6)) if num_requests else []
    rows = [data.draw(st.lists(HASHES, min_size=num, max_size=num)) for _ in of_row]
    rows, sets = np.array(rows, np.uint64).reshape(-1, num), np.array(sets, np.uint64).reshape(-1, width)
    wanted = [[each != 0 and each in sets[r] for each in row] for r, row in zip(of_row, rows, strict=True)]
    for places in (MAX_PLACES, 1):
        with mock.patch.object(batches, "MAX_PLACES", places):
            assert among(of_row, rows, sets).tolist() == wanted


def test_a_large_set_finds_all_of_its_members_and_nothing_else():
    rng = np.random.default_rng(0)
    sets = rng.integers(1, 2**63, (4, 256), dtype=np.uint64)
    of_row = np.repeat(np.arange(4), 20)
    ours = sets[of_row][:, rng.permutation(256)]
    assert among(of_row, ours, sets).all()
    # Others are ruled out even if they have the low bits of a member.
    size = np.uint64(1 << (SPREAD * 256).bit_length())
    assert not among(of_row, ours + size, sets).any()
    assert not among((of_row + 1) % 4, ours, sets).any()


def test_many_requests_of_one_moment_take_bounded_memory():
    rng = np.random.default_rng(0)
    sets = rng.integers(1, 2**63, (4_000, 256), dtype=np.uint64)
    tracemalloc.start()
    assert among(np.arange(4_000), sets[:, :2], sets).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 128 << 20


@pytest.fixture
def world():
    fields = {"viewer": "viewer.topics", "candidate": "candidate.topics"}
    world = World(
        surface_of(shared={"kind": "overlap", **fields}, part={"kind": "overlap", "share": True, **fields})
    )
    world.state.upsert("viewer", "ann", {"topics": ["jazz", "news", "art"]})
    world.state.upsert("candidate", "a", {"topics": ["news", "jazz", "golf"]})
    world.state.upsert("candidate", "b", {"topics": ["golf"]})
    world.state.upsert("candidate", "c", {"topics": []})
    return world


def test_an_overlap_is_a_number_or_the_share_of_the_candidates_set(world):
    viewers, slate = ["ann", "nobody"], ["a", "b", "c", "unknown"]
    named, _ = world.values(viewers, [slate, slate], 0)
    np.testing.assert_array_equal(named["shared"], [2, 0, np.nan, np.nan, 0, 0, np.nan, np.nan])
    np.testing.assert_allclose(named["part"], [2 / 3, 0, np.nan, np.nan, 0, 0, np.nan, np.nan], rtol=1e-6)


def test_features_have_words(world):
    features = world.schema.surface.features
    assert features["shared"].label == "topics shared with viewer's topics"
