from __future__ import annotations

import numpy as np
import pyarrow as pa

from serve.contract.hashing import hash64
from serve.features.matrix import Columns, Matrix
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.reader import read_log
from serve.log.writer import write_log
from tests.support.small_surface import TOML, tables
from training.data.dataset import Dataset, build
from training.evaluation.foresight import suspects

ROWS = 400
LABEL = (np.arange(ROWS) % 4 == 0).astype(np.float32)
NOISE = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)


def dataset(
    numeric: dict[str, np.ndarray] | None = None,
    category: dict[str, list] | None = None,
    label=LABEL,
    slates=80,
) -> Dataset:
    """Return a data set of one-column features; a list of lists of strings is a set."""
    numeric = {"noise": NOISE[: len(label)]} | (numeric or {})
    single, multi, hashes = [], [], []
    for name, values in (category or {}).items():
        if isinstance(values[0], list):
            width = max(map(len, values))
            hashes.append([[hash64(v) for v in row] + [0] * (width - len(row)) for row in values])
            multi.append((name, width))
        else:
            hashes.append([[0 if v is None else hash64(v)] for v in values])
            single.append(name)
    parts = [np.array(part, np.uint64) for part in hashes] or [np.empty((len(label), 0), np.uint64)]
    rows = np.arange(len(label))
    return Dataset(
        columns=Columns(tuple(numeric), tuple(single), tuple(multi)),
        matrix=Matrix(np.stack(list(numeric.values()), 1).astype(np.float32), np.concatenate(parts, 1)),
        outcomes=label[:, None],
        slate=rows % slates,
        viewer=rows % slates,
        shown=rows,
        ts_ms=rows,
        popular=NOISE[: len(label)],
        position=np.zeros(len(label), np.int64),
        viewer_seen=rows,
        candidate_seen=rows,
        request_ids=[f"r{i}" for i in range(slates)],
        candidate_ids=[f"c{i}" for i in rows],
    )


def found(data: Dataset) -> dict[str, str]:
    return {suspect.feature: suspect.sign for suspect in suspects(data)}


def test_a_number_that_is_the_label_is_reported_with_auc_and_remedy():
    (suspect,) = suspects(dataset({"outcome": LABEL * 2 + NOISE / 10}))
    assert (suspect.feature, suspect.sign, suspect.auc, suspect.rows) == ("outcome", "value", 1.0, ROWS)
    assert "'outcome'" in str(suspect)
    assert "1.000" in str(suspect)
    assert "ts_ms" in str(suspect)


def test_a_number_that_falls_with_the_label_is_one_too():
    assert found(dataset({"left_over": -LABEL})) == {"left_over": "value"}


def test_a_number_that_is_there_for_positives_alone_is_one():
    dwell = np.where(LABEL > 0, NOISE, np.nan)
    assert found(dataset({"dwell": dwell})) == {"dwell": "missing"}


def test_a_good_honest_feature_is_none():
    assert found(dataset({"good": LABEL + NOISE})) == {}


def test_a_category_that_is_the_label_is_one_and_a_set_that_holds_it_too():
    state = ["won" if y else "lost" for y in LABEL]
    badges = [["new", "winner"] if y else ["new"] for y in LABEL]
    assert found(dataset(category={"state": state, "badges": badges})) == {
        "state": "value",
        "badges": "value",
    }


def test_a_category_that_is_there_for_positives_alone_is_one():
    assert found(dataset(category={"receipt": ["yes" if y else None for y in LABEL]})) == {
        "receipt": "missing"
    }


def test_a_category_with_a_value_for_each_row_is_none():
    """In the sample the rates would be the labels; the other folds do not contain the value."""
    assert found(dataset(category={"name": [f"n{i}" for i in range(ROWS)]})) == {}


def test_a_category_with_a_value_for_each_slate_is_none():
    # All rows of a slate have the same label.
    label = (np.arange(ROWS) % 80 % 4 == 0).astype(np.float32)
    assert found(dataset(category={"session": [f"s{i % 80}" for i in range(ROWS)]}, label=label)) == {}


def test_a_category_is_found_where_the_label_has_the_rhythm_of_the_folds():
    label = (np.arange(ROWS) % 80 % 5 == 0).astype(np.float32)
    assert found(dataset(category={"state": ["won" if y else "lost" for y in label]}, label=label)) == {
        "state": "value"
    }


def test_few_rows_give_no_suspect():
    # Ten positives.
    label = LABEL[:40]
    assert found(dataset({"outcome": label}, label=label)) == {}


def test_no_column_and_no_positive_are_no_error():
    assert found(dataset(label=np.zeros(ROWS, np.float32))) == {}


def test_an_outcome_without_a_date_is_suspect_and_with_a_date_is_not(tmp_path):
    """`won` holds the outcome.

    Without `ts_ms` it holds from the beginning; dated after the exposure, it is not known yet.
    """
    surface = read_surface(
        TOML.replace("[context]", 'won = "number"\n[context]').replace(
            "[features]", '[features]\nwon = { kind = "number", field = "candidate.won" }'
        )
    )

    def features(dated: bool) -> set[str]:
        num = 200
        ids = [f"c{i}" for i in range(num)]
        won = [float(i % 4 == 0) for i in range(num)]
        parts = tables()
        plain = {
            name: pa.nulls(num, parts["candidates"].schema.field(name).type)
            for name in parts["candidates"].column_names
        }
        first = plain | {"id": ids, "won": pa.array([None] * num if dated else won, pa.float64())}
        last = plain | {"id": ids, "won": pa.array(won), "ts_ms": pa.array([10**6] * num, pa.int64())}
        stages = [pa.table(first), pa.table(last)] if dated else [pa.table(first)]
        parts["candidates"] = pa.concat_tables(stages)
        parts["exposures"] = pa.table(
            {
                "request_id": [f"r{i}" for i in range(num)],
                "ts_ms": pa.array([1_000 * i for i in range(num)], pa.int64()),
                "viewer": ["ann"] * num,
                "candidates": [[c] for c in ids],
                "context": pa.nulls(num, parts["exposures"].schema.field("context").type),
            }
        )
        joined = [i for i in range(num) if won[i]]
        parts["events"] = pa.table(
            {
                "id": [f"e{i}" for i in joined] + ["end"],
                "ts_ms": pa.array([1_000 * i + 500 for i in joined] + [10**7], pa.int64()),
                "viewer": ["ann"] * (len(joined) + 1),
                "candidate": [ids[i] for i in joined] + [ids[0]],
                "kind": ["join"] * len(joined) + ["leave"],
                "request_id": [f"r{i}" for i in joined] + [None],
            }
        )
        folder = tmp_path / ("dated" if dated else "plain")
        write_log(folder, parts)
        return set(found(build(Schema(surface), read_log(folder, surface))))

    assert "won" in features(dated=False)
    assert features(dated=True) == set()


def test_findings_come_worst_first():
    both = suspects(dataset({"b": LABEL * 3 + NOISE, "a": LABEL}))
    assert [s.feature for s in both] == ["a", "b"]
    assert 0.95 <= both[1].auc < 1.0
