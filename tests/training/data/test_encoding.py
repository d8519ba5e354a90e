from __future__ import annotations

import numpy as np
import pytest

from serve.contract.hashing import hash64
from serve.features.matrix import Columns, Features, Matrix
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.model.encoder import UNSEEN, Encoder
from tests.support.small_surface import TOML
from training.data.dataset import build
from training.data.encoding import (
    MAX_EMBEDDING,
    MAX_HOT,
    MAX_VOCABULARY,
    MIN_ROWS,
    category_strings,
    fit_encoder,
)

SURFACE = read_surface(
    TOML[: TOML.index("[features]")].replace('"audience"', '"price"')
    + """[features]
price = { kind = "number", field = "candidate.price", transform = "log1p" }
hour = { kind = "number", field = "context.hour" }
topic = { kind = "category", field = "candidate.topic" }
tags = { kind = "multi_category", field = "candidate.tags" }
"""
)
COLUMNS = Features(Schema(SURFACE)).columns


def fitted(topics=("news",), tags=((),), price=(1.0,), hour=(0.0,), strings=None) -> Encoder:
    """Fit the encoder of rows; a column that is shorter than the longest is repeated."""
    rows = max(map(len, (topics, tags, price, hour)))
    width = dict(COLUMNS.multi)["tags"]
    category = np.zeros((rows, 1 + width), np.uint64)
    for i in range(rows):
        hashes = [hash64(value) for value in tags[i % len(tags)]]
        category[i, 0] = 0 if topics[i % len(topics)] is None else hash64(topics[i % len(topics)])
        category[i, 1 : 1 + len(hashes)] = hashes
    numeric = np.stack([np.resize(price, rows), np.resize(hour, rows)], axis=1).astype(np.float32)
    words = {value for value in topics if value} | {value for row in tags for value in row}
    known = {hash64(word): word for word in words} if strings is None else strings
    return fit_encoder(SURFACE, COLUMNS, Matrix(numeric, category), known)


def test_columns_come_in_the_order_of_the_features():
    assert isinstance(COLUMNS, Columns)
    fitted().check(COLUMNS)


def test_the_most_frequent_value_comes_first_and_ties_go_by_hash():
    topics = ["b"] * 30 + ["a"] * 30 + ["often"] * 31
    tied = sorted("ab", key=hash64)
    assert fitted(topics).single[0].vocabulary == ("often", *tied)
    assert fitted(topics[::-1]) == fitted(topics)


def test_a_rare_value_is_unseen_and_a_missing_one_takes_no_place():
    topics = ["news"] * MIN_ROWS + ["jazz"] * (MIN_ROWS - 1) + [None] * 50
    encoder = fitted(topics)
    assert encoder.single[0].vocabulary == ("news",)
    category = np.zeros((1, encoder.columns.num_category), np.uint64)
    category[0, 0] = hash64("jazz")
    _, _, index = encoder.encode(np.zeros((1, 2), np.float32), category)
    assert index.tolist() == [[UNSEEN]]


def test_where_all_values_are_rare_the_most_frequent_stay():
    assert fitted(["news"] * 3 + ["jazz"] * 2).single[0].vocabulary == ("news",)


def test_a_column_without_values_has_an_empty_vocabulary():
    encoder = fitted([None] * 30)
    assert encoder.single[0].vocabulary == ()
    assert encoder.multi[0].vocabulary == ()


def test_vocabularies_and_embeddings_have_their_caps():
    many = [f"t{i}" for i in range(MAX_VOCABULARY + 5) for _ in range(MIN_ROWS)]
    tags = [(f"x{i}",) for i in range(MAX_HOT + 5) for _ in range(MIN_ROWS)]
    encoder = fitted(many, tags=tags)
    assert len(encoder.single[0].vocabulary) == MAX_VOCABULARY
    assert encoder.single[0].embedding == MAX_EMBEDDING
    assert len(encoder.multi[0].vocabulary) == MAX_HOT
    assert fitted(["a"] * 30).single[0].embedding < MAX_EMBEDDING


def test_a_set_counts_each_of_its_places():
    encoder = fitted(tags=[("x", "y")] * 20 + [("y", "x")] * 5 + [("y",)])
    assert encoder.multi[0].vocabulary == ("y", "x")
    assert encoder.multi[0].width == 3


def test_numbers_are_standardised_after_the_transform_without_missing_ones():
    encoder = fitted(price=(0.0, np.e - 1, np.nan, np.nan), hour=(2.0, 4.0))
    price, hour = encoder.numeric
    assert (price.transform, price.indicator) == ("log1p", True)
    assert (price.mean, price.std) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert (hour.transform, hour.mean, hour.std, hour.indicator) == ("none", 3.0, 1.0, False)


def test_log1p_keeps_the_sign():
    price = fitted(price=(-(np.e - 1), np.e - 1)).numeric[0]
    assert (price.mean, price.std) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_a_constant_and_an_empty_column_have_a_spread_of_one():
    price, hour = fitted(price=(np.nan,), hour=(7.0, 7.0)).numeric
    assert (price.mean, price.std, price.indicator) == (0.0, 1.0, True)
    assert (hour.mean, hour.std) == (7.0, 1.0)


def test_the_encoder_depends_on_the_given_rows_alone(log_folder, surface):
    """Validation rows change neither a mean nor a vocabulary, as in `fit`."""
    log = read_log(log_folder, surface)
    data = build(Schema(surface), log)
    strings = category_strings(surface, log)
    early = data.take(np.flatnonzero(data.ts_ms < 20_000))
    encoder = fit_encoder(surface, data.columns, early.matrix, strings)
    price = next(column for column in encoder.numeric if column.name == "price")
    # The prices of a and c, shown in r1.
    assert price.mean == pytest.approx((np.log1p(1.0) + np.log1p(3.0)) / 2)
    topic = next(column for column in encoder.single if column.name == "topic")
    # The topics of b and c; news occurs only once.
    assert topic.vocabulary == ("jazz",)
    whole = fit_encoder(surface, data.columns, data.matrix, strings)
    assert whole != encoder


def test_every_field_gives_strings_and_an_unknown_hash_is_hexadecimal(log_folder, surface):
    strings = category_strings(surface, read_log(log_folder, surface))
    assert set(strings.values()) == {"en", "fr", "hal", "ida", "jon", "news", "jazz", "x", "y", "z"}
    assert all(hash64(value) == hashed for hashed, value in strings.items())
    assert fitted(["news"] * 30, strings={}).single[0].vocabulary == (f"#{hash64('news'):016x}",)
