"""Erase viewers from a flat log, and name the models that learned from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve.contract.errors import TabrankError
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.log.lease import Lease, swap_lease
from serve.log.reader import read_joined, read_log
from serve.log.replay import Replay
from serve.log.writer import write_log
from serve.model.artifact import FILES, save
from tests.support.row_values import audience, flat
from tests.support.shop_log import write_shop
from tests.support.small_surface import tables
from training.__main__ import app
from training.data.dataset import build
from training.data.split import split
from training.drafting.draft import draft
from training.drafting.profile import read_tables
from training.erasure.forget import describe, forget, read_viewers
from training.experiment.served_log import read_exposures
from training.fit.fit import fit
from training.fit.loop import FitConfig
from training.network.network import NetworkConfig


def rows(log, name):
    return pq.read_table(log / f"{name}.parquet").to_pylist()


def erase(log, *viewers, **more):
    return forget(log, viewers, log.parent / "models", **more)


def test_a_flat_log_loses_the_viewer_and_keeps_what_counts_for_candidates(log_folder):
    before = {name: rows(log_folder, name) for name in ("exposures", "events")}
    result = erase(log_folder, "ann", "nobody")
    assert result["rows"] == {"viewers": 1, "exposures": 2, "events": 4, "snapshots": 0}
    assert (result["viewers"], result["unknown"], result["store"]) == (2, 1, None)
    assert [row["id"] for row in rows(log_folder, "viewers")] == ["bob"]
    for name, kept in (("exposures", ("candidates", "ts_ms")), ("events", ("candidate", "kind", "ts_ms"))):
        for old, new in zip(before[name], rows(log_folder, name), strict=True):
            if old["viewer"] == "bob":
                assert new == {**old, "erased": False}
            else:
                assert new.pop("erased")
                same = {column for column, value in old.items() if new[column] == value != None}  # noqa: E711
                assert same == set(kept)


def test_an_event_still_joins_its_exposure_under_their_new_ids(log_folder):
    erase(log_folder, "ann")
    (first, *_), events = rows(log_folder, "exposures"), rows(log_folder, "events")
    assert [event["request_id"] == first["request_id"] for event in events[:2]] == [True, True]
    assert len({event["id"] for event in events}) == len(events)


def test_columns_that_we_do_not_know_are_emptied_too(tmp_path):
    parts = tables()
    parts["exposures"] = parts["exposures"].append_column("device", pa.array(["d1", "d2", "d3"]))
    write_log(tmp_path / "log", parts)
    erase(tmp_path / "log", "ann")
    assert [row["device"] for row in rows(tmp_path / "log", "exposures")] == [None, "d2", None]


def test_rows_without_a_viewer_go_with_the_request_that_they_name(tmp_path):
    parts = tables()
    parts["events"] = pa.table(
        {
            "id": ["ann's", "bob's", "hers", "lone"],
            "ts_ms": [11_000, 21_000, 41_000, 42_000],
            "viewer": pa.array([None, None, "ann", None], pa.string()),
            "candidate": ["a", "a", "a", "a"],
            "kind": ["click", "click", "click", "click"],
            "request_id": pa.array(["r1", "r2", "anonymous", None], pa.string()),
        }
    )
    more = {"request_id": ["anonymous"], "ts_ms": [40_000], "candidates": [["a"]]}
    parts["exposures"] = pa.concat_tables([parts["exposures"], pa.table(more)], promote_options="default")
    write_log(tmp_path / "log", parts)
    erase(tmp_path / "log", "ann")
    assert [row["erased"] for row in rows(tmp_path / "log", "events")] == [True, False, True, False]
    assert [row["erased"] for row in rows(tmp_path / "log", "exposures")] == [True, False, True, True]


def test_whole_numbers_as_ids_are_found(tmp_path):
    parts = tables()
    ids = {"ann": 17, "bob": 18, None: None}
    for name, column in (("viewers", "id"), ("exposures", "viewer"), ("events", "viewer")):
        place = parts[name].column_names.index(column)
        numbers = pa.array([ids[value] for value in parts[name][column].to_pylist()], pa.int64())
        parts[name] = parts[name].set_column(place, column, numbers)
    requests = pa.array([101, 102, 103], pa.int64())
    parts["exposures"] = parts["exposures"].set_column(0, "request_id", requests)
    write_log(tmp_path / "log", parts)
    assert erase(tmp_path / "log", "17")["rows"]["exposures"] == 2
    assert [row["viewer"] for row in rows(tmp_path / "log", "exposures")] == [None, 18, None]


def test_candidates_count_after_the_erasure_as_before_it(log_folder, surface):
    replays = [Replay(Schema(surface), read_log(log_folder, surface))]
    erase(log_folder, "ann")
    replays.append(Replay(Schema(surface), read_log(log_folder, surface)))
    for replay in replays:
        replay.finish()
    before, after = (replay.state.candidates for replay in replays)
    ours, theirs = flat(before.table), flat(after.table)
    for name in ("_state.sums", "_state.sums_ms", "ends_ms", "host"):
        assert ours[name].tolist() == theirs[name].tolist()
    # Nobody is counted in a room any more who is not known.
    ids, now_ms = ["a", "b", "c", "d"], 60_000
    assert audience(Schema(surface), before, ids, now_ms) == [0, 1, 0, 1]
    assert audience(Schema(surface), after, ids, now_ms) == [0, 0, 0, 1]


def test_erased_rows_are_left_out_of_rows_draft_and_experiment(tmp_path, surface):
    parts = tables()
    arms = {"experiment": "one", "arm": "model", "share": 0.5}
    for name, value in arms.items():
        parts["exposures"] = parts["exposures"].append_column(name, pa.array([value] * 3))
    log = tmp_path / "log"
    write_log(log, parts)
    whole = build(Schema(surface), read_log(log, surface))
    erase(log, "ann")
    data = build(Schema(surface), read_log(log, surface))
    assert {whole.request_ids[i] for i in whole.slate} == {"r1", "r2", "r3"}
    assert {data.request_ids[i] for i in data.slate} == {"r2"}
    # Of the label's events, only the viewer's own count.
    assert data.label.sum() == 1
    assert read_tables(log)[0]["exposures"]["request_id"].to_pylist() == ["r2"]
    assert len(read_exposures(log, "one").rows) == 1
    said = []
    read_joined(log, surface, said.append)
    assert "1 events join an exposure" in said[0]
    # Candidate zz is unknown.
    assert ["warning" in line for line in said] == [False, True]


def test_a_log_without_the_column_is_not_erased(log_folder, surface):
    log = read_log(log_folder, surface)
    assert not any(log.exposures["erased"].to_pylist() + log.events["erased"].to_pylist())


def test_a_split_of_the_log_keeps_what_is_erased(log_folder, tmp_path, surface):
    erase(log_folder, "ann")
    split(log_folder, 0.5, tmp_path / "before", tmp_path / "after")
    assert [row["erased"] for row in rows(tmp_path / "before", "exposures")] == [True]
    assert read_log(tmp_path / "after", surface).exposures["erased"].to_pylist() == [False, True]


def test_the_last_viewers_go_with_their_table(log_folder, surface):
    erase(log_folder, "ann", "bob")
    assert not (log_folder / "viewers.parquet").exists()
    assert len(read_log(log_folder, surface).viewers) == 0


def test_an_interrupted_erasure_leaves_no_file_without_rows(log_folder, monkeypatch):
    unlink = Path.unlink

    def killed(path, **more):
        if path.name == "viewers.parquet":
            raise KeyboardInterrupt
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        erase(log_folder, "ann", "bob")
    assert len(rows(log_folder, "viewers")) == 2


def test_drafts_that_a_killed_process_left_are_deleted(log_folder):
    (log_folder / "viewers").mkdir()
    drafts = [log_folder / ".events.parquet.partial", log_folder / "viewers" / ".00001-0001.partial"]
    for path in drafts:
        path.write_bytes(b"ann")
    erase(log_folder, "ann", dry_run=True)
    assert all(path.exists() for path in drafts)
    erase(log_folder, "ann")
    assert not any(path.exists() for path in drafts)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", ["0" * 20, "before", ".hidden"])
def test_a_folder_that_may_be_a_snapshot_is_refused_before_anything_changes(log_folder, name, dry_run):
    stray = log_folder / "snapshots" / name
    stray.mkdir(parents=True)
    (stray / "meta.json").write_text("{")
    before = rows(log_folder, "exposures")
    with pytest.raises(TabrankError, match=f"{name}: not readable as a snapshot, .* move it out of the log"):
        erase(log_folder, "ann", dry_run=dry_run)
    assert rows(log_folder, "exposures") == before


def test_no_row_group_is_left_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("serve.log.compaction.AT_ONCE_BYTES", 1)
    viewers = [f"v{i}" for i in range(192)]
    write_log(tmp_path / "log", tables() | {"viewers": pa.table({"id": viewers})})
    erase(tmp_path / "log", *viewers[64:])
    meta = pq.read_metadata(tmp_path / "log" / "viewers.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [64]


def test_a_dry_run_changes_nothing(log_folder):
    before = {path: path.read_bytes() for path in log_folder.iterdir()}
    counted = erase(log_folder, "ann", dry_run=True)
    assert {path: path.read_bytes() for path in log_folder.iterdir()} == before
    assert counted["rows"] == erase(log_folder, "ann")["rows"]


def test_a_damaged_file_is_refused_before_anything_changes(log_folder):
    (log_folder / "viewers.parquet").write_bytes(b"PAR1 no more PAR1")
    before = rows(log_folder, "events")
    with pytest.raises(TabrankError, match=r"viewers\.parquet: not readable as Parquet"):
        erase(log_folder, "ann")
    assert rows(log_folder, "events") == before


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"ann\nbob\n", ["ann", "bob"]),
        (b"\xef\xbb\xbfann\r\n\r\nann\n", ["ann"]),
        (" ann\tb \n\u2028".encode(), [" ann\tb ", "\u2028"]),
    ],
)
def test_a_file_holds_one_id_a_line_as_it_is_written(tmp_path, content, found):
    (tmp_path / "ids.txt").write_bytes(content)
    assert read_viewers(tmp_path / "ids.txt") == found


def test_a_file_of_json_strings_holds_ids_with_line_breaks(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('"ann"\n\n"two\\nlines"\r\n" \\u2028"\n"ann"\n')
    assert read_viewers(path) == ["ann", "two\nlines", " \u2028"]
    for wrong in ("ann", "17", '"ann" "bob"', '"\\ud800"', "[" * 100_000):
        path.write_text(f'"ann"\n{wrong}\n')
        with pytest.raises(TabrankError, match=r"ids\.jsonl, line 2: not a JSON string: "):
            read_viewers(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\n\r\n", "ids.txt: holds no id; write one"),
        (b"\xff\n", "ids.txt: not readable as UTF-8 text"),
        (b"ann\n\n" + b"x" * 257, "ids.txt, line 3: an id has at most 256 characters"),
        (b"ann\n" * 1_100_000, "ids.txt: has over 4 MiB; split it"),
        # The limit is within a character.
        (b"a" + "\u00e9".encode() * (2 << 20), "ids.txt: has over 4 MiB; split it"),
    ],
)
def test_a_file_without_proper_ids_is_refused(tmp_path, content, why):
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(TabrankError, match=why):
        read_viewers(tmp_path / "ids.txt")


def publish(beside, number, /, **manifest):
    """Publish a model with this manifest, beside a log; return its version."""
    version = f"20260101T00000{number}Z-abcd"
    save(beside.parent / "models" / version, dict.fromkeys(FILES, b""), {"version": version, **manifest})
    return version


def test_published_models_that_learned_from_the_viewers_are_named(log_folder):
    made = {"log": str(log_folder), "span_ms": [10_000, 30_000], "seen_until_ms": 40_000}
    learned = publish(log_folder, 1, **made)
    earlier = publish(log_folder, 2, **made | {"span_ms": [10_001, 30_000], "seen_until_ms": 39_999})
    deleted = publish(log_folder, 3, **made | {"span_ms": [8_000, 8_500], "seen_until_ms": 9_000})
    copy = publish(log_folder, 4, **made | {"log": "/elsewhere"})
    old = publish(log_folder, 5, span_ms=[10_000, 30_000])
    damaged = publish(log_folder, 6, **made)
    (log_folder.parent / "models" / damaged / "model.onnx").write_bytes(b"other")
    named = erase(log_folder, "ann")["models"]
    assert named[learned] is None
    assert earlier not in named
    assert "no longer has its first rows" in named[deleted]
    assert "/elsewhere, which may be a copy" in named[copy]
    assert "does not name its log" in named[old]
    assert "model.onnx" in named[damaged]
    # Who was never shown anything left nothing to learn from.
    assert learned not in erase(log_folder, "nobody")["models"]


def test_the_command_says_what_it_did(log_folder, tmp_path):
    version = publish(log_folder, 1, log=str(log_folder), span_ms=[10_000, 30_000], seen_until_ms=40_000)
    (tmp_path / "ids.txt").write_text("ann\nnobody\n")
    given = {"log": log_folder, "viewers": tmp_path / "ids.txt", "models": tmp_path / "models"}
    command = ["forget", *(f"--{name}={path}" for name, path in given.items())]
    said = CliRunner().invoke(app, [*command, "--dry-run"])
    assert said.stdout.splitlines() == [
        f"{log_folder}: rows of 2 viewers: 4 events, 2 exposures, 1 viewer, 0 snapshots; dry run, nothing changed",
        "store: none behind this log",
        "found nowhere: 1 viewer",
        f"models: 1 version in {tmp_path / 'models'}, 1 learned from them, or may have:",
        f"{version} learned from them; fit and publish another",
    ]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stdout.splitlines()[0]) == (
        0,
        said.stdout.splitlines()[0].replace("dry run, nothing changed", "erased"),
    )
    (tmp_path / "ids.txt").write_text("nobody\n")
    lines = CliRunner().invoke(app, [*command, "--dry-run"]).stdout.splitlines()
    assert lines[-1] == f"models: 1 version in {tmp_path / 'models'}, none learned from them"
    shutil.rmtree(tmp_path / "models" / version)
    lines = CliRunner().invoke(app, [*command, "--dry-run"]).stdout.splitlines()
    assert lines[-1] == f"models: 0 versions in {tmp_path / 'models'}"
    shutil.rmtree(tmp_path / "models")
    missing = CliRunner().invoke(app, [*command, "--dry-run"])
    assert (missing.exit_code, "models: no such folder" in missing.stderr) == (2, True)
    (tmp_path / "ids.txt").unlink()
    assert CliRunner().invoke(app, command).exit_code == 2


def test_models_that_were_not_found_are_not_called_innocent(log_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = forget(log_folder, ["ann"], dry_run=True)
    assert describe(log_folder, result)[-1] == "models: not looked at; name their folder with --models"
    version = publish(log_folder, 1, log=str(log_folder), span_ms=[10_000, 30_000], seen_until_ms=40_000)
    held = Lease.of(log_folder, "lmdb:store", "tiny-0", "", tmp_path)
    assert swap_lease(log_folder, None, replace(held, released=True, models=str(tmp_path / "models")))
    assert forget(log_folder, ["ann"])["models"] == {version: None}


@pytest.mark.integration
@pytest.mark.no_ray
def test_a_fitted_model_says_what_it_learned_from(tmp_path):
    write_shop(tmp_path / "log", slates=400)
    viewers = [row["id"] for row in rows(tmp_path / "log", "viewers")][:40]
    surface = read_surface(draft(tmp_path / "log").text)
    config = FitConfig(NetworkConfig(width=8, n_steps=1), epochs=1, num_workers=0)
    version = "20260101T000001Z-abcd"
    out = tmp_path / "models" / version
    fit(surface, tmp_path / "log", out, lambda num: replace(config, batch_size=num // 4))
    assert erase(tmp_path / "log", *viewers)["models"] == {version: None}
    assert erase(tmp_path / "log", *viewers)["models"] == {}
