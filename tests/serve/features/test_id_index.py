from __future__ import annotations

import random

import pytest

from serve.features.id_index import Buckets


class Index:
    """Dict and its buckets, changed together."""

    def __init__(self, num_ids):
        self.rows = {f"a{i}": i + 1 for i in range(num_ids)}
        self.buckets = Buckets(self.rows)

    def set(self, name, row):
        self.rows[name] = row
        self.buckets.changed(name)

    def drop(self, name):
        del self.rows[name]
        self.buckets.changed(name)

    def check(self, ids):
        assert self.buckets.find(ids).tolist() == [self.rows.get(id_, 0) for id_ in ids]


@pytest.mark.parametrize("num_ids", [0, 1, 8_192, 8_193, 50_000])
def test_each_id_is_found_and_no_other(num_ids):
    index = Index(num_ids)
    index.check([*index.rows, "b", None, "a-1", ""])
    assert len(index.buckets.find([])) == 0


@pytest.mark.parametrize("num_ids", [100, 20_000])
def test_ids_that_come_and_go_between_lookups_are_seen_at_the_next(num_ids):
    random.seed(0)
    index = Index(num_ids)
    for turn in range(30):
        gone = random.sample(list(index.rows), 40)
        freed = [index.rows[name] for name in gone]
        for name in gone:
            index.drop(name)
        for name, row in zip(gone[:10] + [f"new{turn}-{i}" for i in range(30)], freed, strict=True):
            index.set(name, row)
        index.check([*gone, *(f"new{turn}-{i}" for i in range(40)), *random.sample(list(index.rows), 50)])
    index.check(list(index.rows))


def test_a_table_that_grows_by_many_and_by_few_stays_whole():
    index = Index(0)
    for first, num in ((0, 9_000), (9_000, 10), (9_010, 30_000), (39_010, 900)):
        for i in range(first, first + num):
            index.set(f"id{i}", i + 1)
        index.check([f"id{i}" for i in range(first + num + 5)])
    # Add a few at a time, until the ids exceed the capacity of the first table.
    for _ in range(40):
        for _ in range(1_000):
            index.set(f"id{len(index.rows)}", len(index.rows) + 1)
        index.check(["id0", f"id{len(index.rows) - 1}", f"id{len(index.rows)}"])
    index.check(list(index.rows))


def test_an_id_without_room_in_its_bucket_is_found_all_the_same():
    class Crowd(str):
        __slots__ = ()

        def __hash__(self):
            return 7 + (int(self[1:]) << 40)

    rows = {Crowd(f"c{i}"): i + 1 for i in range(9_000)}
    buckets = Buckets(rows)
    ids = [*list(rows)[:100], Crowd("c99999")]
    assert buckets.find(ids).tolist() == [rows.get(id_, 0) for id_ in ids]
    rows[new := Crowd("c9000")] = 9_001
    buckets.changed(new)
    assert buckets.find([new]).tolist() == [9_001]
