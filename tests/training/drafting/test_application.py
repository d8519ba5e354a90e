from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from serve.config.reader import read
from serve.contract.rankings import MAX_CANDIDATES
from serve.features.surface import load_surface
from tests.support.shop_log import write_shop
from training.__main__ import app

ROOT = Path(__file__).parents[3]


def draft(folder, *arguments):
    done = CliRunner().invoke(app, ["surface", "--log", str(folder / "the log"), *arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafted")
    write_shop(folder / "the log", slates=300)
    (folder / "printed").write_text(draft(folder, "--out", f"{folder}/my"))
    return folder


def test_the_drafted_application_is_accepted_and_has_paths_beside_it(folder):
    config = read(folder / "my/cluster.yaml")
    (application,) = config.serve["applications"]
    assert application["name"] == "the-log"
    given = {name: application["args"][name] for name in ("surface", "store", "models", "log")}
    assert given == {
        "surface": "surface.toml",
        "store": "lmdb:store",
        "models": "models",
        "log": "../the log",
    }
    assert (folder / "my" / given["log"] / "exposures.parquet").is_file()
    experiment = application["deployments"][0]["user_config"]["experiment"]
    assert (experiment["name"], experiment["salt"]) == ("the-log", "the-log")
    # One order in a hundred is drawn, which measures the examination of positions.
    assert experiment["arms"]["model"] == {"scorer": "current", "share": 1.0, "explore": 0.01}
    assert load_surface(str(folder / "my/surface.toml")).name == "the-log"


def test_it_carries_no_name_of_another_surface_and_every_other_setting(folder):
    shipped, drafted = (path.read_text() for path in (ROOT / "cluster.yaml", folder / "my/cluster.yaml"))
    assert len(drafted.splitlines()) == len(shipped.splitlines())
    changed = [new for old, new in zip(shipped.splitlines(), drafted.splitlines(), strict=True) if old != new]
    assert len(changed) == 9
    document = yaml.safe_load(drafted)
    assert not {"spaces", "launch"} & set(re.findall(r"\w+", json.dumps(document)))


def test_a_file_is_the_surface_alone_and_a_folder_is_never_overwritten(folder):
    draft(folder, "--out", f"{folder}/alone.toml")
    assert load_surface(str(folder / "alone.toml")).name == "the-log"
    done = CliRunner().invoke(app, ["surface", "--log", str(folder / "the log"), "--out", str(folder / "my")])
    assert (done.exit_code, "exists already" in done.stderr) == (2, True)


def test_the_request_is_the_newest_of_the_largest_slates_and_does_not_train(folder):
    request = json.loads((folder / "my/request.json").read_text())
    exposures = pq.read_table(folder / "the log/exposures.parquet").sort_by("ts_ms").to_pylist()
    newest = [one for one in exposures if len(one["candidates"]) == 8][-1]
    assert len(exposures[-1]["candidates"]) < 8
    assert (request["viewer"], request["candidates"]) == (newest["viewer"], newest["candidates"])
    assert (request["explain"], request["traffic"], request["limit"]) == ("reasons", "test", 10)
    assert (folder / "my").stat().st_mode & 0o777 == 0o700


def test_of_a_slate_that_is_too_large_the_request_has_the_first_candidates(tmp_path):
    write_shop(tmp_path / "the log", slates=300)
    path = tmp_path / "the log/exposures.parquet"
    exposures = pq.read_table(path)
    wide = exposures["candidates"].to_pylist()
    wide[7] = [f"i{i}" for i in range(MAX_CANDIDATES + 5)]
    place = exposures.column_names.index("candidates")
    pq.write_table(exposures.set_column(place, "candidates", pa.array(wide)), path)
    draft(tmp_path, "--out", f"{tmp_path}/my", "--yes")
    assert json.loads((tmp_path / "my/request.json").read_text())["candidates"] == wide[7][:MAX_CANDIDATES]


def test_the_next_commands_name_the_written_files(folder):
    _, *commands = (folder / "printed").read_text().splitlines()
    search, load, up, ask = map(shlex.split, commands)
    assert search[2:6] == ["training", "search", "--surface", f"{folder}/my/surface.toml"]
    assert search[-2:] == ["--models", f"{folder}/my/models"]
    assert load[2:4] == ["serve", "load"]
    assert load[-1] == f"lmdb:{folder}/my/store"
    assert up[2:] == ["serve", "up", f"{folder}/my/cluster.yaml"]
    assert ask[-1] == f"@{folder}/my/request.json"
