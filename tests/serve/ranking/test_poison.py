"""A poisoned row changes no bit of another row's score, however the poison came in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.config.settings import Arm
from serve.contract.records import Candidate, Event
from serve.features.matrix import Features, Matrix
from serve.features.rows import RowTable, Schema, State
from serve.features.surface import Surface
from serve.ingest.apply import RecordApplier, packed
from serve.model.artifact import load
from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn
from serve.model.scorers import OnnxScorer, TorchScorer
from serve.ranking.query import Query, Slate
from serve.ranking.ranker import Ranker
from serve.stores.candidate_table import CandidateTable
from tests.support.memory_store import MemoryStore
from tests.support.networks import random_network, write_artifact
from training.network.network import NetworkConfig

MODEL = "20260101T000000Z-abcd"
NUM_CANDIDATES = 40
EXTREMES = (np.nan, np.inf, -np.inf, 1e308, -1e308, 1e30, 5e-324)
EXTREME_MS = (0, -1, 2**63 - 1, -(2**63))


class Service:
    """A store with candidates and viewers, and a ranker with a real scorer."""

    def __init__(self, surface: Surface, folder: Path, backend: str) -> None:
        self.schema = Schema(surface)
        self.features = Features(self.schema)
        rng = np.random.default_rng(3)
        columns = self.features.columns
        encoder = Encoder(
            tuple(NumericColumn(name, indicator=i % 2 == 0) for i, name in enumerate(columns.numeric)),
            tuple(SingleColumn(name, ("news", "jazz", "en")) for name in columns.single),
            tuple(MultiColumn(name, width, ("x", "y", "z")) for name, width in columns.multi),
        )
        network = random_network(rng, encoder, NetworkConfig(n_steps=3))
        artifact = load(write_artifact(folder / "a", network, rng))
        self.scorer = OnnxScorer(artifact) if backend == "onnx" else TorchScorer(artifact, "cpu")
        self.rows = self._filled()

    def _filled(self) -> dict[str, dict[str, bytes]]:
        """Return packed rows of viewers and candidates, after some events."""
        state = State(self.schema)
        changes = RecordApplier(state)
        draw = random.Random(4)
        for i in range(NUM_CANDIDATES):
            fields = {
                "topic": draw.choice(["news", "jazz"]),
                "price": i / 20,
                "tags": ["x", "y"],
                "started_ms": i,
            }
            changes.apply(Candidate(f"c{i}", fields))
        for i in range(400):
            viewer, candidate = f"v{i % 5}", f"c{draw.randrange(NUM_CANDIDATES)}"
            changes.apply(Event(f"e{i}", viewer, candidate, draw.choice(["join", "click"]), 1_000 * i))
        changes.observe()
        return {
            "viewer": packed(state.viewers, changes.viewers),
            "candidate": packed(state.candidates, changes.candidates),
        }

    def rank(
        self, poison: Callable[[Service], None] = lambda service: None, **more: Any
    ) -> dict[tuple[int, str], float]:
        """Return the scores of each request with poisoned rows; restore the rows afterwards."""
        before = {entity: dict(rows) for entity, rows in self.rows.items()}
        poison(self)
        store = MemoryStore()
        store.take_epoch()
        store.commit(1, self.rows["viewer"], self.rows["candidate"])
        self.rows = before

        async def score(version: str, matrix: Matrix, request_of_row: Any) -> Any:
            return self.scorer.score(matrix.numeric, matrix.category)

        ranker = Ranker(self.features, CandidateTable(self.schema, lambda: store), score, _fail)
        queries = [query(i, **more) for i in range(5)]
        # NumPy warns about the poison, which would be an error here.
        with np.errstate(all="ignore"):
            slates = asyncio.run(ranker.rank(queries))
        return {(i, name): s for i, slate in enumerate(slates) for name, s in scores(slate).items()}

    def write(self, entity: str, name: str, field: str, value: Any) -> None:
        """Poison one field of a packed row."""
        dtype = self.schema.viewer if entity == "viewer" else self.schema.candidate
        row = np.frombuffer(self.rows[entity][name], dtype).copy()
        row[field] = value
        self.rows[entity][name] = row.tobytes()


def _fail(reason: str, error: Exception, request_id: str | None) -> None:
    raise AssertionError(reason) from error


def query(number: int, stated: dict[int, dict[str, object]] | None = None) -> Query:
    """A request for all candidates, in an order of its own."""
    names = [f"c{i}" for i in range(NUM_CANDIDATES)]
    random.Random(number).shuffle(names)
    return Query(
        f"r{number}", f"v{number}", names, 500_000, Arm("model", "current", 1.0), "launch", MODEL,
        NUM_CANDIDATES, {"hour": 3.0}, (stated or {}) if number == 0 else {}, False, "live", False, False,
        NUM_CANDIDATES,
    )  # fmt: skip


def scores(slate: Slate) -> dict[str, float]:
    return dict(zip(slate.query.candidates, slate.score.tolist(), strict=True))


@pytest.fixture(scope="module", params=["onnx", "torch"])
def service(request: Any, surface: Surface, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(surface, tmp_path_factory.mktemp("poison"), request.param)


def drawn(few: int, many: int) -> pytest.MarkDecorator:
    rest = pytest.param(
        range(few, many), marks=[pytest.mark.integration, pytest.mark.no_ray, pytest.mark.proof]
    )
    return pytest.mark.parametrize("seeds", [range(few), rest], ids=["few", "many"])


@drawn(15, 300)
def test_a_poisoned_candidate_in_the_store_changes_no_other_score(service: Service, seeds: range) -> None:
    clean, num_moved = service.rank(), 0
    for seed in seeds:
        draw = random.Random(seed)
        name = f"c{draw.randrange(NUM_CANDIDATES)}"
        field = draw.choice([field for field in service.schema.candidate.names or () if field != "ends_ms"])
        value = poison_for(service.schema.candidate[field], draw)
        dirty = service.rank(lambda s: s.write("candidate", name, field, value))  # noqa: B023
        assert {key: dirty[key] for key in clean if key[1] != name} == {
            key: clean[key] for key in clean if key[1] != name
        }, (name, field, value)
        assert all(0.0 <= score <= 1.0 for score in dirty.values())
        num_moved += dirty != clean
    assert num_moved > len(seeds) / 5, "its own score moves"


@drawn(15, 300)
def test_a_poisoned_viewer_in_the_store_changes_no_other_viewers_scores(
    service: Service, seeds: range
) -> None:
    clean = service.rank()
    for seed in seeds:
        draw = random.Random(seed)
        number = draw.randrange(5)
        field = draw.choice(service.schema.viewer.names or ())
        value = poison_for(service.schema.viewer[field], draw)
        dirty = service.rank(lambda s: s.write("viewer", f"v{number}", field, value))  # noqa: B023
        assert {key: dirty[key] for key in clean if key[0] != number} == {
            key: clean[key] for key in clean if key[0] != number
        }, (number, field, value)


def poison_for(dtype: np.dtype[Any], draw: random.Random) -> Any:
    base = dtype.base
    if base.kind == "f":
        return draw.choice(EXTREMES)
    if base.kind == "u":
        return draw.getrandbits(8 * base.itemsize)
    # In a shorter number, such a time is any number.
    return np.int64(draw.choice(EXTREME_MS)).astype(base)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("entity", ["candidate", "viewer"])
def test_a_row_of_another_size_is_unknown_and_changes_no_other_score(
    service: Service, entity: str, size: int
) -> None:
    name = "c7" if entity == "candidate" else "v2"

    def cut(service: Service) -> None:
        service.rows[entity][name] = bytes(size)

    clean, dirty = service.rank(), service.rank(cut)
    others = [key for key in clean if name not in (key[1], f"v{key[0]}")]
    # The batch has other rows, and on some processors torch then rounds the last bit differently.
    assert {key: dirty[key] for key in others} == pytest.approx({key: clean[key] for key in others}, abs=1e-6)


def test_two_damaged_rows_whose_sizes_make_up_for_each_other_are_not_mixed(surface: Surface) -> None:
    schema = Schema(surface)
    rows, size = RowTable(schema, "candidate"), schema.candidate.itemsize
    whole = schema.blank("candidate")
    whole["price"] = 7.0
    rows.apply({"a": bytes(size - 8), "b": whole.tobytes(), "c": bytes(size + 8)})
    assert set(rows.index) == {"b"}
    assert rows.table["price"][rows.index["b"]] == 7.0


def test_a_price_that_a_request_states_itself_changes_no_other_score(service: Service) -> None:
    clean, name = service.rank(), query(0).candidates[3]
    own = {clean[0, name]}
    for price in (1e30, -1e30, 1e-30, 0.0):
        dirty = service.rank(stated={3: {"price": price}})
        own.add(dirty.pop((0, name)))
        assert dirty == {key: clean[key] for key in dirty}
    assert len(own) > 1, "it counts for its own"
