"""Test the search command: a kill, the resumed search, and a refresh after it."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.features.surface import SHIPPED
from serve.model.artifact import current, load
from training.search.leaderboard import Leaderboard
from training.world.simulate import simulate

pytestmark = [pytest.mark.integration, pytest.mark.proof]

ROOT = Path(__file__).parents[3]
MOST_US = 3.5
HANG_S = 900.0
"""A call that takes longer than this hangs."""
GO_ON = """
import json, sys
from pathlib import Path
from serve.features.surface import load_surface
from training.search.commands import NUM_TEACHERS
from training.search.search import search
from training.search.task import SearchSettings

given = {"num_teachers": NUM_TEACHERS, "models": Path("models"), "max_us": float(sys.argv[1])}
settings = SearchSettings(3600.0, max_trials=int(sys.argv[2]), **given)
print(json.dumps(search(load_surface("spaces.toml"), Path("log"), Path("out"), settings)))
"""
"""Code of the second call, which ends after a number of trials, however long they take."""


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return run_python("-m", "training", *arguments, cwd=cwd)


def run_python(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)


def wait_for_trials(board: Path, num: int) -> None:
    until = time.monotonic() + HANG_S
    while time.monotonic() < until:
        if board.exists() and board.read_text().count("TabNet ") >= num:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {num} trials in {board}")


class Story:
    """A search that is killed after a trial and called again, then a refresh from its winner."""

    def __init__(self, folder: Path) -> None:
        simulate(folder / "log", rows=100_000, days=2.0)
        # So few rows do not show a gain over its rule.
        text = re.sub(r"\[baseline\]\n.*\n", "", (SHIPPED / "spaces.toml").read_text())
        (folder / "spaces.toml").write_text(text)
        searching = ("search", "--surface", "spaces.toml", "--log", "log", "--out", "out")
        searching += ("--max-us-per-candidate", str(MOST_US), "--models", "models", "--json")
        board = folder / "out" / "leaderboard.jsonl"
        first = start(*searching, "--budget", "10m", cwd=folder)
        wait_for_trials(board, 1)
        family = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        _, self.orphans = psutil.wait_procs(family, timeout=HANG_S)
        self.killed_with = [entry for entry in Leaderboard(board).entries if entry.kind == "tabnet"]
        more = str(len(self.killed_with) + 1)
        second = run_python("-c", GO_ON, str(MOST_US), more, cwd=folder)
        out, stderr = second.communicate(timeout=HANG_S)
        assert second.returncode == 0, stderr
        self.found = json.loads(out)
        self.entries = Leaderboard(board).entries
        third = start(*searching, "--budget", "1s", cwd=folder)
        out, _ = third.communicate(timeout=HANG_S)
        self.code = third.returncode
        self.again = json.loads(out)
        self.published = current(folder / "models")
        fourth = start(
            *(
                "refresh",
                "--surface",
                "spaces.toml",
                "--log",
                "log",
                "--models",
                "models",
            ),
            *("--days", "0.9", "--budget", "1s"),
            cwd=folder,
        )
        other = start("search", "--surface", "spaces", "--log", "log", "--out", "out", cwd=folder)
        _, self.refresh_stderr = fourth.communicate(timeout=HANG_S)
        self.refresh_code = fourth.returncode
        assert self.refresh_code in (0, 1, 3), self.refresh_stderr
        self.refreshed = load(folder / "models.refresh" / "artifact").manifest
        _, self.other_stderr = other.communicate(timeout=HANG_S)
        self.other_code = other.returncode
        self.folder = folder


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    return Story(tmp_path_factory.mktemp("search"))


def test_a_killed_search_leaves_no_process_and_keeps_its_finished_trials(story):
    assert story.orphans == []
    names = [entry.name for entry in story.entries]
    assert story.killed_with
    assert len(set(names)) == len(names)
    kept = [entry for entry in story.entries if entry.kind == "tabnet"]
    assert kept[: len(story.killed_with)] == story.killed_with
    assert len(kept) > len(story.killed_with)


def test_the_leaderboard_holds_all_kinds_and_the_winner_fits_the_cost(story):
    kinds = {line["kind"] for line in story.found["leaderboard"]}
    assert kinds == {"tabnet", "lightgbm", "popular"}
    best = next(line for line in story.found["leaderboard"] if line["kind"] == "tabnet" and line["fits"])
    assert story.found["winner"] == best["name"]
    assert story.found["us_per_candidate"] <= MOST_US


def test_the_winner_stores_the_distributions_of_its_training_rows(story):
    kept = json.loads((story.folder / "out" / "artifact" / "evaluation.json").read_text())["statistics"]
    assert kept["rows"] == min(load(story.folder / "out" / "artifact").manifest["rows"], 50_000)


def test_the_report_opens_with_the_leader_and_the_exit_code_is_the_gate(story):
    assert story.code == (0 if story.found["passed"] else 1)
    others = [line for line in story.found["leaderboard"] if line["name"] != story.found["winner"]]
    is_tied = any(line["tie"] for line in others)
    assert {line["tie"] for line in others} <= {True, False}
    assert ("level with it within" if is_tied else "won the search") in story.found["headline"]
    page = (story.folder / "out" / "artifact" / "report.html").read_text()
    assert story.found["headline"] in html.unescape(page)
    assert story.published == (story.found["version"] if story.found["passed"] else None)


def test_a_search_whose_budget_is_spent_answers_with_what_it_found(story):
    for key in ("winner", "version", "trials", "leaderboard", "test_looks"):
        assert story.again[key] == story.found[key]
    assert story.again["test_looks"] == 1


def test_a_refresh_starts_from_the_current_model_and_may_replace_it(story):
    version, refreshed = story.found["version"], story.refreshed
    assert story.found["reasons"] == [], "popular cannot use the tastes of the simulated viewers"
    tried = Leaderboard(story.folder / "models.refresh" / "leaderboard.jsonl").tried()
    point = next(entry.point for entry in story.entries if entry.name == story.found["winner"])
    assert any(entry.point["learning_rate"] == point["learning_rate"] for entry in tried)
    before, _, after = story.refresh_stderr.partition("--budget of 1 s is too small to compare networks: ")
    assert "--budget of 1 s is too small: it is spent before the trials" in before
    assert after.index("is enough for another like it") < after.index("rows before the test rows")
    # The rows after the first search's training rows are new to both models.
    assert 0 < refreshed["paired"]["model-current"]["rows"] <= refreshed["test_rows"]
    assert story.refresh_code in (0, 3)
    is_followed = story.refresh_code == 0
    assert current(story.folder / "models") == (refreshed["version"] if is_followed else version)


def test_a_search_with_another_surface_is_refused_in_its_folder(story):
    assert story.other_code == 2
    assert "name another folder" in story.other_stderr.splitlines()[-1]
