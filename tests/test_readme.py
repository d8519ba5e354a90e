"""Tests that execute the README's commands in a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from serve.features.surface import read_surface
from tests.support.shop_log import write_flat_shop

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
UP, USE, DEMO, OWN = BLOCKS
SECTION = re.search(r"## Operating it\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)[1]
OPERATING = re.findall(r"^    (python -m .*?)\s+#", SECTION, re.M)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copy the files that git tracks, with this environment as `.venv`."""
    tree = tmp_path_factory.mktemp("tree")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    (tree / ".venv").symlink_to(sys.prefix)
    assert (tree / ".venv/.installed").exists(), (
        "run `make install` first: the README's commands need its .venv"
    )
    # The test machine may be busy; a small log and model start the same service.
    replace(tree / "cluster.yaml", "deadline_ms: 100\n", "deadline_ms: 3000\n")
    replace(tree / "Makefile", "--rows 200000 --days 1 ", "--rows 40000 --days 1 ")
    replace(tree / "Makefile", "--epochs 5\n", "--epochs 2\n")
    yield tree
    shell("make down", tree)


def replace(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def shell(script, cwd, accept=(0,)):
    bin_first = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(cwd)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=cwd,
        env=os.environ | bin_first,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in accept, (done.stdout[-2_000:], done.stderr[-2_000:])
    return done


def operate(tree):
    """Run the README's commands for operation on the running service."""
    (tree / "load.csv").write_text("t_s,offered_rps\n0,50\n10,100\n")
    *others, popular = OPERATING
    for command in others:
        # The console runs until Ctrl-C.
        ends = "timeout --preserve-status --signal=INT 8 " * command.endswith(" console")
        shell(ends + command, tree)
    shell(popular, tree)
    request = json.loads((tree / "var/log/request.json").read_text())
    answer = httpx.post("http://127.0.0.1:8000/v1/rank", json=request, timeout=30).json()
    assert (answer["rung"], answer["degraded"]) == ("fallback", ["kill_switch"])
    shell("python -m serve diff", tree, accept=(1,))
    shell(f"{popular} --off && python -m serve diff", tree)


def run_examples(tree):
    """Run the examples of rankings on the running service."""
    added, ranked, joined = map(json.loads, shell("examples/rank.sh", tree).stdout.splitlines())
    assert (added["accepted"], joined["accepted"]) == (2, 1)
    assert (ranked["rung"], ranked["unknown_candidates"]) == ("full", [])
    lines = shell("python examples/rank.py", tree).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    assert lines[3] == "EventsAnswer(accepted=1, duplicates=0, rejected=[])"


@pytest.mark.proof
def test_the_example_of_an_own_surface_goes_from_csv_to_a_ranking(tree):
    answer = json.loads(shell("examples/own_surface/run.sh", tree).stdout.splitlines()[-2])
    assert (answer["surface"], answer["rung"], len(answer["ranking"])) == ("bakery", "full", 5)


def test_up_rank_and_down(tree):
    output = shell(UP + USE.replace("make down\n", ""), tree).stdout
    run_examples(tree)
    operate(tree)
    shell("make down", tree)
    text = output[output.index("{") :]
    answer, end = json.JSONDecoder().raw_decode(text)
    taken, _ = json.JSONDecoder().raw_decode(text[end:].lstrip())
    assert taken == {"accepted": 1, "duplicates": 0, "rejected": []}
    # The events were written when the service stopped.
    served = pq.read_table(tree / "var/log/events")
    assert [name.split("-")[0] for name in served["id"].to_pylist()] == ["e1", "example", "example"]
    assert answer["rung"] == "full"
    assert answer["model"]
    assert len(answer["ranking"]) == 5
    assert answer["unknown_candidates"] == []
    assert "features" not in answer["ranking"][0]
    assert answer["ranking"][0]["reasons"]


def test_your_own_data(tree):
    """Take a flat file to a ranking by README's commands; the search gets only 3 s."""
    write_flat_shop(tree / "rows.csv", slates=500)
    lines = OWN.replace(" search ", " search --budget 3s ").splitlines()
    (search,) = (i for i, line in enumerate(lines) if " search " in line)
    # On a slow machine the winner may not beat popular yet, which the search reports.
    publish = "python -m training publish --model my/search --models my/models"
    lines[search] += f" || {{ [ $? = 1 ] && {publish}; }}"
    try:
        output = shell("\n".join(lines), tree).stdout
    finally:
        shell("python -m serve down", tree)
    answer = json.loads(output.splitlines()[-1])
    assert (answer["surface"], answer["experiment"], answer["rung"]) == ("my-log", "my-log", "full")
    assert answer["unknown_viewer"] is False
    assert answer["unknown_candidates"] == []
    assert len(answer["ranking"]) == len(json.loads((tree / "my/request.json").read_text())["candidates"])
    drafted = read_surface((tree / "my/surface.toml").read_text()).features
    assert {"viewer_region", "colour", "liked_rate"} <= set(drafted)
    told = {reason["feature"] for each in answer["ranking"] for reason in each["reasons"]}
    assert told
    assert told <= set(drafted)
    assert "features" not in answer["ranking"][0]


def test_the_commands_that_it_only_names_are_there(tree):
    """Check their help: they take minutes, and other tests run them briefly."""
    named = re.findall(r"^    (python -m .*?)\s+#", (ROOT / "README.md").read_text(), re.M)
    assert len(named) == 6 + len(OPERATING)
    for command in named:
        if command not in OPERATING:
            shell(f"{command} --help", tree)


@pytest.mark.proof
def test_the_demo_tells_its_story_and_its_verdict(tree):
    """Run the demo with a load of five seconds instead of half a minute."""
    replace(tree / "loadtest/scenarios/demo.py", "\nLOAD_S = 30\n", "\nLOAD_S = 5\n")
    # The test does not require that this machine holds the rate.
    done = shell(DEMO, tree, accept=(0, 1, 2))
    report = json.loads((tree / "var/demo/report.json").read_text())
    assert set(report["train"]) >= {"rows", "seconds", "auc", "logloss", "ndcg@10"}
    assert report["train"]["ndcg@10"]["model"] > report["train"]["ndcg@10"]["popular"]
    assert report["serve"]["rung"] == "full"
    assert report["topic"]["rose"] is True
    keys = (
        "target_rps rps candidates_per_s full_share p50_ms p90_ms p99_ms errors generator_late_ms_p99 verdict"
    )
    assert set(report["load"]) >= set(keys.split())
    assert done.returncode == {"held": 0, "not held": 1, "void": 2}[report["load"]["verdict"]], done.stderr
    assert "model − popular" in done.stdout
