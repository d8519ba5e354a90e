"""The declaration in force: what the log says was declared judges, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from serve.config.settings import Arm, Experiment, UserConfig
from serve.contract.errors import TabrankError
from tests.support.experiment_log import (
    DAY_MS,
    START_MS,
    SURFACE,
    declared_text,
    redeclare,
    write_experiment,
    write_rows,
)
from tests.support.logging_service import Logging
from training.experiment.declared import Declared
from training.experiment.page import page, text
from training.experiment.report import report

LAUNCH = Declared("launch", primary_metric="click_per_viewer", min_days=2)
NOON_MS = START_MS + DAY_MS // 2


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log in which the model raises clicks and joins by 40 %."""
    return write_experiment(tmp_path_factory.mktemp("won") / "log", uplift=0.4, num_viewers=1_500)


def served(log, folder, *, since=None, **changes):
    """Copy a log that was served under `LAUNCH`, and under a changed one from a time on."""
    texts = {0: declared_text(LAUNCH)}
    if changes:
        texts[since or NOON_MS] = declared_text(replace(LAUNCH, **changes))
    return redeclare(log, folder / "log", texts)


def test_without_a_declaration_in_the_log_there_is_no_verdict_and_the_tables_are_exploratory(log, tmp_path):
    bare = redeclare(log, tmp_path / "log", {})
    for path in (bare / "exposures").iterdir():
        # As an earlier release wrote it.
        pq.write_table(pq.read_table(path).drop_columns(["declaration"]), path)
    result = report(bare, replace(LAUNCH, source="cluster.yaml"), SURFACE)
    assert (result["verdict"], result["days_needed"], result["declared"]) == ("no verdict", None, None)
    assert result["primary_metric"] == "click_per_viewer"
    first, *_ = text(result).splitlines()
    assert first.startswith(
        "no verdict: the log has no declaration of launch: a service writes it beside the first exposure"
    )
    assert "; nothing shows that a metric was chosen before its effect was seen, so the tables are" in first
    assert "\n(exploratory)\nmetric " in text(result)
    assert "<h2>Metrics (exploratory)</h2>" in page(result)
    assert "won" not in page(result).split("<table")[0].split("<strong>")[1]


def test_an_invalid_experiment_is_invalid_with_or_without_a_declaration(tmp_path):
    uneven = write_experiment(tmp_path / "uneven", split=0.6)
    assert report(redeclare(uneven, tmp_path / "bare", {}), LAUNCH, SURFACE)["verdict"] == "invalid"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"primary_metric": "join_per_viewer"},
            "primary_metric is join_per_viewer instead of click_per_viewer",
        ),
        ({"guardrails": {"stay_per_viewer": 0.05}}, "guardrails is {stay_per_viewer: 0.05} instead of none"),
        ({"min_days": 0, "smallest_effect": 0.5}, "smallest_effect is 0.5 instead of 0.02, min_days is 0"),
    ],
)
def test_the_first_declaration_judges_and_a_later_one_is_told_with_its_time(log, tmp_path, changes, words):
    plain, changed = (
        report(served(log, tmp_path / name, **more), LAUNCH, SURFACE)
        for name, more in (("plain", {}), ("changed", changes))
    )
    assert (plain["verdict"], plain["warnings"]) == ("won", [])
    (warning,) = changed.pop("warnings")
    assert warning.startswith("the declaration changed: from 2024-10-04T12:0")
    assert words in warning
    # Nothing else in the report moved.
    assert changed == {name: plain[name] for name in changed}


def test_a_file_that_says_otherwise_is_warned_of_and_does_not_judge(log, tmp_path):
    kept = served(log, tmp_path)
    named = replace(LAUNCH, source="cluster.yaml")
    plain = report(kept, named, SURFACE)
    assert plain["warnings"] == []
    other = replace(named, primary_metric=None, guardrails={"active_days": 0.001}, end_ms=NOON_MS)
    result = report(kept, other, SURFACE)
    (warning,) = result.pop("warnings")
    assert warning.startswith("cluster.yaml is not the declaration of 2024-10-04T00:0")
    assert "primary_metric is join_per_viewer instead of click_per_viewer" in warning
    assert "end is 2024-10-04T12:00:00Z instead of none" in warning
    assert result == {name: plain[name] for name in result}
    assert report(kept, replace(named, end_ms=START_MS), SURFACE)["verdict"] == "won"


def test_an_end_that_is_put_off_does_not_move_it(log, tmp_path):
    end_ms = START_MS + 3 * DAY_MS
    late = redeclare(
        log,
        tmp_path / "log",
        {
            0: declared_text(replace(LAUNCH, end_ms=end_ms)),
            end_ms: declared_text(replace(LAUNCH, end_ms=end_ms + DAY_MS)),
        },
    )
    result = report(late, Declared("launch"), SURFACE)
    assert (result["window"]["ended"], result["window"]["end"]) == (True, "2024-10-07T00:00:00Z")
    assert report(late, Declared("launch", end_ms=end_ms), SURFACE)["warnings"] == result["warnings"]
    (warning,) = result["warnings"]
    assert "end is 2024-10-08T00:00:00Z instead of 2024-10-07T00:00:00Z" in warning


def test_new_shares_begin_a_window_that_the_declaration_of_then_judges(tmp_path):
    rows = [
        {"viewer": f"v{i}", "ts_ms": START_MS + i * 60_000, "arm": ("model", "popular")[i % 2]}
        | {"share": 0.5 if i >= 400 else (0.1, 0.9)[i % 2]}
        for i in range(800)
    ]
    changed_ms = START_MS + 400 * 60_000
    texts = {
        0: declared_text(LAUNCH),
        changed_ms: declared_text(replace(LAUNCH, primary_metric="active_days")),
    }
    log = redeclare(write_rows(tmp_path / "rows", rows), tmp_path / "log", texts)
    result = report(log, LAUNCH, SURFACE)
    assert (result["primary_metric"], result["warnings"]) == ("active_days", [])


def test_a_declaration_that_comes_after_the_first_viewers_is_none_until_a_start_names_it(log, tmp_path):
    late = redeclare(log, tmp_path / "log", {NOON_MS: declared_text(LAUNCH)})
    result = report(late, LAUNCH, SURFACE)
    assert result["verdict"] == "no verdict"
    assert "exposures came before the declaration; `start:" in result["reason"]
    start = result["reason"].split('start: "')[1].split('"')[0]
    assert start.startswith("2024-10-04T12:0")
    judged = report(late, replace(LAUNCH, start_ms=NOON_MS), SURFACE)
    assert (judged["verdict"], judged["warnings"]) == ("won", [])


def test_declarations_of_other_experiments_and_of_test_traffic_judge_nothing(tmp_path):
    other = declared_text(replace(LAUNCH, primary_metric="active_days"))
    rows = [{"viewer": f"v{i}", "arm": ("model", "popular")[i % 2]} for i in range(8)]
    rows = [
        row | {"ts_ms": START_MS + 10 * i, "declaration": declared_text(LAUNCH)} for i, row in enumerate(rows)
    ]
    rows += [row | {"ts_ms": START_MS, "experiment": "other", "declaration": other} for row in rows[:2]]
    rows += [row | {"ts_ms": START_MS, "traffic": "test", "declaration": other} for row in rows[:2]]
    rows = [row | {"request_id": f"r{i}"} for i, row in enumerate(rows)]
    result = report(write_rows(tmp_path / "log", rows), LAUNCH, SURFACE)
    assert (result["primary_metric"], result["warnings"]) == ("click_per_viewer", [])


def test_a_declaration_that_is_too_long_for_the_log_is_refused_before_it_is_served(tmp_path):
    def misfits(num):
        arms = tuple(Arm("x" * 100 + str(i), "popular", 1 / num) for i in range(num))
        return [*UserConfig(Experiment("launch", "s", arms)).misfits(SURFACE, tmp_path)]

    assert misfits(100) == []
    ((path, error),) = misfits(200)
    assert path == ("experiment", "arms")
    assert error.endswith(" bytes of 16,384; shorten their names")


@pytest.mark.parametrize("written", ["{", "{}", '{"primary_metric": 3}', "click_per_viewer"])
def test_what_is_no_declaration_is_refused_in_a_sentence(tmp_path, written):
    rows = [{"viewer": "ann", "ts_ms": START_MS, "arm": "model", "declaration": written}]
    with pytest.raises(TabrankError, match=r"exposures, column 'declaration': .* is no declaration"):
        report(write_rows(tmp_path / "log", rows), LAUNCH, SURFACE)


def test_what_a_service_serves_under_is_what_its_report_judges_by(tmp_path, log_folder):
    arms = (Arm("model", "popular", 0.5), Arm("popular", "popular", 0.5))
    experiment = Experiment("launch", "s", arms, start_ms=60_000, guardrails={"active_days": 0.1}, min_days=3)
    service = Logging(tmp_path, log_folder)
    service.config = replace(service.config, experiment=experiment)

    async def visits(live):
        # Before the start, of test traffic and anonymous: none of them is of the experiment.
        await live.rank("ann", ["a", "b"], 59_000)
        await live.rank("ann", ["a", "b"], 60_000, traffic="test")
        await live.rank(None, ["a", "b"], 60_500)
        for i in range(20):
            await live.rank(f"v{i}", ["a", "b"], 61_000 + i)
        # The replica takes the change, and another one starts.
        live.fetcher.configure(replace(service.config, experiment=replace(experiment, min_days=1)))
        await live.rank("v1", ["a", "b"], 70_000)

    service.run(visits)
    result = report(service.folder / "log", Declared("launch"), service.surface)
    first = experiment.declaration(service.surface)
    assert result["declared"] == json.loads(first.text)
    assert first.primary_metric == next(iter(service.surface.outcomes)) + "_per_viewer"
    assert "3 whole days (min_days), not 0" in text(result)
    (warning,) = (one for one in result["warnings"] if "declaration" in one)
    assert "from 1970-01-01T00:01:10Z on, min_days is 1 instead of 3" in warning
    carried = service.log_path
    table = pq.read_table(next((carried / "exposures").glob("0*.parquet")), columns=["ts_ms", "declaration"])
    bare = {row["ts_ms"] for row in table.to_pylist() if row["declaration"] is None}
    assert {59_000, 60_000, 60_500} <= bare
