"""Test the effects by the segments of a field."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.contract.errors import TabrankError
from serve.features.experiment_metrics import metrics_of
from serve.features.surface import read_surface
from tests.support.experiment_log import ARMS, DAY_MS, START_MS, SURFACE, write_rows
from tests.support.simulated_viewers import simulated_panel
from training.experiment import segments
from training.experiment.declared import Declared
from training.experiment.page import page, text
from training.experiment.report import report

FIELDS = read_surface(
    SURFACE.text.replace(
        "[candidate]",
        '[viewer]\ncountry = "category"\nage = "number"\n[context]\ndevice = "category"\n[candidate]',
    )
)
JOINS = metrics_of(FIELDS)[0]
NUM = 2_000


def by_eighths(rng, people):
    """Yield eight segments to which viewers belong by chance."""
    which = rng.integers(0, 8, len(people.arm))
    for value in range(8):
        yield f"s{value}", people, which == value


def test_without_an_effect_one_of_eight_segments_is_shown_in_at_most_one_of_twenty_runs():
    shown = luck = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        people = simulated_panel(rng, 0.2, viewers=6_400)
        found = segments.effects("viewer.s", by_eighths(rng, people), ARMS, JOINS, ended=True)
        rows = found["rows"]
        shown += any(row["shown"] for row in rows)
        luck += any(row["effect"]["p"] < 0.05 for row in rows)
    # Two standard errors above 5 %. Without the correction it is a third of the runs.
    assert shown <= 0.05 * 60 + 2 * np.sqrt(0.05 * 0.95 * 60)
    assert luck > 10


def test_a_segment_with_too_few_viewers_or_events_has_no_effect_and_says_so():
    people = simulated_panel(np.random.default_rng(1), 0.2, viewers=6_400)
    few, many = np.arange(6_400) < 500, np.arange(6_400) >= 500
    people.sums["join"][:] = 0.0
    parts = [("few", people, few), ("many", people, many)]
    found = segments.effects("viewer.s", iter(parts), ARMS, JOINS, ended=False)
    assert [row["missing"] for row in found["rows"]] == [
        "300 viewers in each arm",
        "30 viewers in each arm who differ from most",
    ]
    assert not any(row["effect"] or row["shown"] for row in found["rows"])


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log in which the model lifts the joins on talks of viewers in Chile, who come by phone.

    Each viewer has two exposures. The second one has another device, and after the first one the
    viewer moves to Peru.
    """
    rng = np.random.default_rng(3)
    model, chile = rng.random(NUM) < 0.5, rng.random(NUM) < 0.5
    exposures, events, viewers = [], [], []
    for i in range(NUM):
        who, at = f"v{i}", START_MS + i * 1_000
        device = ("phone" if chile[i] else "tablet"), "desktop"
        # Half of the countries are stated with a time before the first exposure, and half without
        # one.
        stated = {"country": "CL" if chile[i] else "AR", "stated": ["country"]}
        unknown = {"received_ms": None, "age": None}
        viewers.append({"id": who, "ts_ms": None if i % 2 else at - 1} | stated | unknown)
        viewers.append({"id": who, "ts_ms": at + 1, "country": "PE", "stated": ["country"]})
        # A row without a time counts from its arrival.
        viewers.append({"id": who, "received_ms": at + 2, "country": "UY", "stated": ["country"]})
        # A row that states another field leaves the country as it is.
        viewers.append({"id": who, "ts_ms": at, "country": None, "age": 40.0, "stated": ["age"]})
        for visit in range(2):
            row = {"viewer": who, "arm": ARMS[int(model[i])], "ts_ms": at + visit * DAY_MS}
            exposures.append(row | {"context": {"device": device[visit]}, "model": None})
            for candidate, lift in (("talk", 0.3 * (model[i] & chile[i])), ("song", 0.0)):
                if rng.random() < 0.3 + lift:
                    joined = {"viewer": who, "kind": "join", "candidate": candidate}
                    events.append(joined | {"ts_ms": row["ts_ms"] + 9, "request_id": f"r{2 * i + visit}"})
    # Viewers of whom nothing is known.
    del viewers[: 4 * 20]
    folder = write_rows(tmp_path_factory.mktemp("segments") / "log", exposures, events)
    topics = [
        {"id": "talk", "topic": "talks", "ts_ms": None},
        {"id": "song", "topic": "music", "ts_ms": None},
    ]
    usual = dict.fromkeys(("ts_ms", "received_ms", "stated", "country", "age", "topic"))
    for name, rows in (("viewers", viewers), ("candidates", topics)):
        (folder / name).mkdir()
        pq.write_table(
            pa.Table.from_pylist([usual | row for row in rows]), folder / name / f"{1:020d}.parquet"
        )
    return folder


def run(log, by):
    declaration = Declared("launch", end_ms=START_MS + DAY_MS, primary_metric="join_per_viewer")
    return report(log, declaration, FIELDS, by=by)


def seen(result):
    """Return by value whether an effect is shown, and the number of viewers of both arms."""
    return {row["value"]: (row["shown"], sum(row["viewers"].values())) for row in result["segments"]["rows"]}


@pytest.mark.parametrize(
    ("by", "has_effect", "has_none"),
    [
        ("viewer.country", "CL", "AR"),
        ("context.device", "phone", "tablet"),
        ("candidate.topic", "talks", "music"),
    ],
)
def test_an_effect_in_one_segment_is_shown_there_alone(log, by, has_effect, has_none):
    result = run(log, by)
    found = seen(result)
    assert found[has_effect][0]
    assert not found[has_none][0]
    total = sum(num for _, num in found.values())
    if by == "candidate.topic":
        assert {num for _, num in found.values()} == {NUM}
    else:
        assert total == NUM
    # Neither a later country nor a later device makes a segment.
    assert set(found) - {"(missing)"} == {has_effect, has_none}
    if by == "viewer.country":
        assert found["(missing)"] == (False, 20)
    assert {name: run(log, None)[name] for name in ("verdict", "reason")} == {
        name: result[name] for name in ("verdict", "reason")
    }
    for shown in (text(result), page(result)):
        assert by in shown
        assert result["segments"]["note"] in shown


def test_a_field_that_gives_no_segments_is_refused(log, tmp_path):
    with pytest.raises(
        TabrankError, match=r"--by: unknown .* 'viewer.contry'; did you mean 'viewer.country'"
    ):
        run(log, "viewer.contry")
    exposures = [
        {"viewer": f"v{i}", "arm": ARMS[i // 30], "ts_ms": START_MS + i, "context": {"device": f"d{i}"}}
        for i in range(60)
    ]
    wide = write_rows(tmp_path / "log", exposures, [{"viewer": "v0", "kind": "join", "ts_ms": START_MS + 99}])
    with pytest.raises(TabrankError, match=r"--by context.device: the field has 60 values .* fewer buckets"):
        run(wide, "context.device")
    (ratio,) = (metric for metric in metrics_of(FIELDS) if metric.name == "join_per_exposure")
    with pytest.raises(TabrankError, match=r"--by candidate.topic: Join per exposure counts exposures"):
        segments.check("candidate.topic", FIELDS, ratio)
