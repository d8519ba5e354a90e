from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.contract.errors import TabrankError
from serve.contract.hashing import hash64
from serve.features.matrix import Columns
from serve.model.encoder import (
    MAX_MESSAGE,
    Encoder,
    MultiColumn,
    NumericColumn,
    SingleColumn,
    entry_hash,
    vocabulary_entry,
)
from tests.support.networks import random_encoder, random_rows

ENCODER = Encoder(
    (NumericColumn("age", "log1p", 2.0, 3.0, indicator=True), NumericColumn("price")),
    (SingleColumn("topic", ("jazz", "news"), 2), SingleColumn("host", ("#00000000000000ff",))),
    (MultiColumn("tags", 3, ("x", "y")),),
)
NUMBERS = np.zeros((1, 2), np.float32)


def row(topic: int = 0, host: int = 0, *tags: int) -> np.ndarray:
    return np.array([[topic, host, *tags, *[0] * (3 - len(tags))]], np.uint64)


def test_missing_unseen_and_known_categories_have_their_own_indices() -> None:
    for hashed, index in ((0, 0), (hash64("polka"), 1), (hash64("jazz"), 2), (hash64("news"), 3)):
        assert ENCODER.encode(NUMBERS, row(topic=hashed))[2].tolist() == [[index, 0]]


def test_a_raw_hash_in_a_vocabulary_stands_for_itself() -> None:
    assert ENCODER.encode(NUMBERS, row(host=0xFF))[2].tolist() == [[0, 2]]


def test_hashes_that_crowd_together_are_told_apart() -> None:
    """Raw hashes may be any number: the smallest, neighbours, and the largest."""
    known = [1, 2, 3, 4, 5, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    crowded = SingleColumn("crowded", tuple(vocabulary_entry(hashed) for hashed in known))
    encoder = Encoder((), (SingleColumn("empty", ()), crowded, SingleColumn("one", ("jazz",))))
    hashes = [0, *known, 6, 2**63 - 1, 2**63 + 2, 2**64 - 3]
    category = np.array([[hashed] * 3 for hashed in hashes], np.uint64)
    index = encoder.encode(np.empty((len(hashes), 0), np.float32), category)[2].T.tolist()
    none_known = [0] + [1] * (len(hashes) - 1)
    assert index == [none_known, [0, *range(2, 2 + len(known)), 1, 1, 1, 1], none_known]


def test_large_vocabularies_are_found_in_full() -> None:
    values = tuple(f"value{i}" for i in range(20_000))
    encoder = Encoder((), (SingleColumn("large", values), SingleColumn("small", values[:3])))
    category = np.array([[hash64(value)] * 2 for value in values], np.uint64)
    index = encoder.encode(np.empty((len(values), 0), np.float32), category)[2]
    assert index[:, 0].tolist() == list(range(2, 2 + len(values)))
    assert index[:, 1].tolist() == [2, 3, 4] + [1] * (len(values) - 3)


def test_a_set_is_one_column_per_known_value_whatever_its_order() -> None:
    x, y, unseen = hash64("x"), hash64("y"), hash64("z")
    assert ENCODER.encode(NUMBERS, row(0, 0, y, unseen, x))[1].tolist() == [[1.0, 1.0]]
    assert ENCODER.encode(NUMBERS, row(0, 0, unseen, y))[1].tolist() == [[0.0, 1.0]]
    assert ENCODER.encode(NUMBERS, row())[1].tolist() == [[0.0, 0.0]]


def test_each_set_has_slots_and_columns_of_its_own() -> None:
    encoder = Encoder((), (), (MultiColumn("a", 1, ("x", "y")), MultiColumn("b", 2, ("x",))))
    category = np.array([[hash64("y"), 0, hash64("x")], [0, hash64("y"), 0]], np.uint64)
    hot = encoder.encode(np.empty((2, 0), np.float32), category)[1]
    assert hot.tolist() == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_numbers_pass_through_as_they_are() -> None:
    numeric = np.array([[np.nan, np.inf]], np.float32)
    encoded = ENCODER.encode(numeric, row())[0]
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, numeric)


def test_inputs_are_named_in_the_order_of_the_network() -> None:
    assert ENCODER.input_names == ("age", "price", "age?", "tags=x", "tags=y", "topic", "host")
    assert ENCODER.cardinalities == (4, 3)


def test_an_encoder_survives_json() -> None:
    for seed in range(5):
        encoder = random_encoder(np.random.default_rng(seed), 3, 2, 2)
        again = Encoder.from_json(encoder.to_json())
        assert again == encoder
        assert again.to_json() == encoder.to_json()


def test_a_row_is_encoded_alike_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(3)
    encoder = random_encoder(rng, 2, 3, 2)
    numeric, category = random_rows(rng, encoder, 40)
    batch = encoder.encode(numeric, category)
    for r in (0, 17, 39):
        alone = encoder.encode(numeric[r : r + 1], category[r : r + 1])
        for part, single in zip(batch, alone, strict=True):
            np.testing.assert_array_equal(part[r : r + 1], single)


def test_no_rows_are_encoded_to_no_rows() -> None:
    shapes = [
        part.shape for part in ENCODER.encode(np.empty((0, 2), np.float32), np.empty((0, 5), np.uint64))
    ]
    assert shapes == [(0, 2), (0, 2), (0, 2)]


@given(st.text(max_size=20) | st.from_regex(r"#[0-9a-f]{16}", fullmatch=True))
def test_a_vocabulary_entry_reads_back_as_the_hash_it_was_made_of(value: str) -> None:
    assert entry_hash(vocabulary_entry(hash64(value), value)) == hash64(value)
    assert entry_hash(vocabulary_entry(hash64(value))) == hash64(value)


def test_a_matrix_of_another_surface_is_refused_with_both_shapes() -> None:
    with pytest.raises(TabrankError, match=r"\(1, 3\).*\(rows, 2\)"):
        ENCODER.encode(np.zeros((1, 3), np.float32), row())


def test_columns_of_another_surface_are_refused_by_name() -> None:
    ENCODER.check(Columns(("age", "price"), ("topic", "host"), (("tags", 3),)))
    with pytest.raises(TabrankError, match=r"single columns.*genre"):
        ENCODER.check(Columns(("age", "price"), ("genre", "host"), (("tags", 3),)))
    with pytest.raises(TabrankError, match="multi columns"):
        ENCODER.check(Columns(("age", "price"), ("topic", "host"), (("tags", 4),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numeric": [{"name": "a", "std": 0.0}]}, "'a': mean 0.0 must be finite, std 0.0"),
        ({"numeric": [{"name": "a", "mean": float("nan")}]}, "NaN is not a JSON number"),
        ({"numeric": [{"name": "a", "transform": "log"}]}, "transform: unknown value 'log'"),
        ({"numeric": [{"name": "a", "stdd": 1.0}]}, "unknown key 'stdd'; did you mean 'std'"),
        ({"numeric": [{"std": 1.0}]}, "numeric.0: the key 'name' is missing"),
        ({"numeric": [{"name": "a", "mean": "1"}]}, "numeric.0.mean: '1' must be a number"),
        ({"single": [{"name": "s", "vocabulary": [], "embedding": 1.5}]}, "1.5 must be a whole number"),
        ({"single": [{"name": "s"}]}, "single.0: the key 'vocabulary' is missing"),
        ({"single": [{"name": "s", "vocabulary": ["x", "x"]}]}, "'x' hashes like 'x'"),
        ({"single": [{"name": "s", "vocabulary": ["#0000000000000000"]}]}, "hashes to 0"),
        ({"single": [{"name": "s", "vocabulary": [1]}]}, "1 must be a string"),
        (
            {"single": [{"name": "s", "vocabulary": [], "embedding": 0}]},
            r"single\.0\.embedding: 0 must be from 1 to",
        ),
        (
            {"multi": [{"name": "m", "width": 0, "vocabulary": []}]},
            r"multi\.0\.width: 0 must be from 1 to 256",
        ),
        ({"multy": []}, "unknown key 'multy'; did you mean 'multi'"),
        ({"multi": 3}, "encoder: must be an object with the lists numeric, single, multi"),
    ],
)
def test_a_damaged_encoder_is_refused_by_column_and_value(change: dict[str, object], message: str) -> None:
    raw = {"numeric": [], "single": [], "multi": [], **change}
    with pytest.raises(TabrankError, match=message):
        Encoder.from_json(json.dumps(raw))
    with pytest.raises(TabrankError, match="not JSON"):
        Encoder.from_json("{")


@pytest.mark.parametrize(
    "change",
    [
        {"single": [{"name": "s", "vocabulary": [1] * 200_000}]},
        {"numeric": [{}] * 200_000},
        {"numeric": [{"name": "a"} | {f"key{i}": 0 for i in range(50_000)}]},
        {"numeric": [{"name": ["x"] * 100_000}]},
        {"single": [{"name": "s" * 600_000, "vocabulary": ["x", "x"]}]},
    ],
    ids=["entries", "columns", "keys", "value", "name"],
)
def test_the_refusal_of_a_large_damaged_encoder_is_short(change: dict[str, object]) -> None:
    with pytest.raises(TabrankError, match="encoder") as caught:
        Encoder.from_json(json.dumps({"numeric": [], "single": [], "multi": [], **change}))
    assert len(str(caught.value)) <= MAX_MESSAGE
