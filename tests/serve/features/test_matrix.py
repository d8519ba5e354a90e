from __future__ import annotations

import numpy as np
import pytest

from serve.contract.hashing import hash64
from serve.features.matrix import Features, Matrix
from serve.features.rows import Schema, State
from serve.features.surface import read_surface
from tests.support.small_surface import TOML, run_of


class World:
    """State and its features, addressed by ids."""

    def __init__(self, surface):
        self.schema = Schema(surface)
        self.state = State(self.schema)
        self.features = Features(self.schema)

    def happen(self, event, viewer, candidates, ts_ms):
        v, c = self.state.viewers.add(viewer), self.state.candidates.find(candidates)
        self.state.observe(run_of(self.schema, [(event, v, c, ts_ms)]))

    def values(self, viewers, slates, now_ms, contexts=None):
        at = self.state.candidates.find([c for slate in slates for c in slate])
        matrix = self.features.compute(
            self.state.viewers.table[self.state.viewers.find(viewers)],
            self.state.candidates.table[at],
            self.schema.context_rows(contexts or [{}] * len(viewers)),
            np.repeat(np.arange(len(slates)), [len(slate) for slate in slates]),
            np.full(len(viewers), now_ms),
            self.state.candidates.values_of(at),
        )
        columns = self.features.columns
        named = {name: matrix.numeric[:, j] for j, name in enumerate(columns.numeric)}
        return named | {name: matrix.category[:, k] for k, name in enumerate(columns.single)}, matrix


@pytest.fixture
def world(surface):
    world = World(surface)
    world.state.upsert("viewer", "ann", {"language": "en", "follows": ["hal", "sue"]})
    world.state.upsert(
        "candidate",
        "a",
        {"host": "hal", "topic": "news", "language": "en", "price": 2.0, "started_ms": 1_000},
    )
    world.state.upsert(
        "candidate", "b", {"host": "ida", "topic": "jazz", "language": "fr", "tags": ["x", "y"]}
    )
    return world


def test_attributes_come_out_as_they_went_in(world):
    named, _ = world.values(["ann"], [["a", "b"]], 11_000, [{"hour": 7}])
    np.testing.assert_equal(named["price"], [2.0, np.nan])
    np.testing.assert_equal(named["age_s"], [10.0, np.nan])
    np.testing.assert_equal(named["hour"], [7.0, 7.0])
    np.testing.assert_equal(named["same_language"], [1.0, 0.0])
    np.testing.assert_equal(named["follows_host"], [1.0, 0.0])
    assert named["topic"].tolist() == [hash64("news"), hash64("jazz")]


def test_unknown_ids_are_missing_and_have_the_priors_rates(world):
    named, matrix = world.values(["nobody"], [["nothing"]], 11_000)
    assert named["topic"].tolist() == [0]
    assert matrix.category.sum() == 0
    for name in ("price", "age_s", "same_language", "follows_host", "topic_affinity", "tag_affinity"):
        assert np.isnan(named[name]).all(), name
    assert named["join_rate"] == pytest.approx([0.1])
    assert named["audience"].tolist() == [0.0]


PAIR = 'entity = ["viewer", "candidate"], event = "join"'


@pytest.mark.parametrize("half_life", ["", ', half_life = "10s"'])
def test_pairs_of_unknown_candidates_have_no_events_beside_those_of_known_ones(half_life):
    features = (
        f'since = {{ kind = "recency", {PAIR} }}',
        f'times = {{ kind = "count", {PAIR}{half_life} }}',
        f'share = {{ kind = "rate", {PAIR}, over = "click", prior = {{ rate = 0.1, weight = 1 }}{half_life} }}',
    )
    world = World(read_surface(TOML + "\n".join(features)))
    for name in ("a", "b", "c"):
        world.state.upsert("candidate", name, {})
    for viewer, name in (("ann", "a"), ("bob", "b"), ("ann", "b")):
        world.happen("join", viewer, [name], 1_000)
    slate = ["nothing", "a", "c", "nobody", "b", "none"]
    named, _ = world.values(["ann", "unknown", "bob"], [slate] * 3, 11_000)
    events, nan = 0.5 if half_life else 1.0, np.nan
    ann, unknown, bob = (0, 1, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 1, 0)
    joined = np.array([*ann, *unknown, *bob])
    np.testing.assert_allclose(named["since"], np.where(joined, 10, nan))
    np.testing.assert_allclose(named["times"], joined * events)
    np.testing.assert_allclose(named["share"], np.where(joined, events + 0.1, 0.1), rtol=1e-6)


def test_a_count_halves_every_half_life(world):
    world.happen("join", "ann", ["a"], 0)
    assert world.values(["ann"], [["a"]], 10_000)[0]["joins"] == pytest.approx([0.5])
    assert world.values(["ann"], [["a"]], 30_000)[0]["joins"] == pytest.approx([0.125])


def test_a_late_event_counts_at_its_own_time(world):
    world.happen("join", "ann", ["a"], 10_000)
    world.happen("join", "ann", ["a"], 0)
    assert world.values(["ann"], [["a"]], 10_000)[0]["joins"] == pytest.approx([1.5])


def test_the_audience_is_joins_minus_leaves_and_never_negative(world):
    world.happen("join", "ann", ["a"], 1)
    world.happen("join", "bob", ["a"], 2)
    world.happen("leave", "bob", ["a"], 3)
    world.happen("leave", "bob", ["b"], 3)
    assert world.values(["ann"], [["a", "b"]], 10_000)[0]["audience"].tolist() == [1.0, 0.0]


def test_a_rate_is_smoothed_by_its_prior(world):
    for ts_ms in range(10):
        world.happen("impression", "ann", ["a", "b"], ts_ms)
    world.happen("join", "ann", ["a"], 20)
    assert world.values(["ann"], [["a", "b"]], 100)[0]["join_rate"] == pytest.approx([2 / 20, 1 / 20])


def test_a_viewer_who_joins_a_topic_takes_to_its_other_candidates(world):
    world.state.upsert("candidate", "new", {"topic": "jazz"})
    before = world.values(["ann", "bob"], [["new"], ["new"]], 100)[0]["topic_affinity"]
    for ts_ms in range(5):
        world.happen("impression", "ann", ["a", "b"], ts_ms)
        world.happen("join", "ann", ["b"], ts_ms)
    after = world.values(["ann", "bob"], [["new"], ["new"]], 100)[0]["topic_affinity"]
    assert after[0] > before[0] + 0.1
    assert after[1] == before[1]


def test_an_affinity_over_a_set_is_the_mean_over_its_values(world):
    world.state.upsert("candidate", "c", {"tags": ["x", "q"]})
    world.happen("impression", "ann", ["b"], 0)
    world.happen("join", "ann", ["b"], 1)
    x, unseen = (1 + 0.1 * 10) / (1 + 10), 0.1
    assert world.values(["ann"], [["c"]], 2)[0]["tag_affinity"] == pytest.approx([(x + unseen) / 2])


def test_a_batch_of_requests_has_the_bits_of_each_request_alone(world):
    world.happen("impression", "ann", ["a", "b"], 5)
    world.happen("join", "ann", ["b"], 6)
    world.happen("join", "bob", ["a"], 7)
    viewers, slates = ["ann", "bob", "nobody"], [["a", "b"], ["b"], ["a", "zz", "b"]]
    _, together = world.values(viewers, slates, 1_000)
    alone = [world.values([v], [s], 1_000)[1] for v, s in zip(viewers, slates, strict=True)]
    np.testing.assert_array_equal(together.numeric, np.concatenate([m.numeric for m in alone]))
    np.testing.assert_array_equal(together.category, np.concatenate([m.category for m in alone]))


def test_an_empty_batch_has_no_rows(world):
    _, matrix = world.values(["ann"], [[]], 1_000)
    assert matrix.numeric.shape == (0, len(world.features.columns.numeric))


def test_a_matrix_survives_its_journey_as_bytes(world):
    _, matrix = world.values(["ann"], [["a", "b", "zz"]], 1_000)
    arrived = Matrix.from_bytes(matrix.to_bytes())
    np.testing.assert_array_equal(arrived.numeric, matrix.numeric)
    np.testing.assert_array_equal(arrived.category, matrix.category)
