"""`python -m serve check`: a corpus of broken files, and every key of the shipped file misspelt."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from serve.__main__ import app
from serve.config import read
from serve.environment import environment
from serve.errors import TabrankError
from serve.our_application import DRAIN_ENV, DRAIN_S
from serve.run_folder import RunFolder

SHIPPED = Path(__file__).resolve().parents[2] / "cluster.yaml"
BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))
EXPECTED = re.compile(r"# (refused|warned) at (\d+):(\d+): (.+)")  # the first lines of a broken file
NAMES = ("arms", "nodes")  # what stands directly under these is a name of the user's, and no key
NO_MODELS = ("there is no folder", "must be a folder that every node mounts")  # of the corpus's models


def checked(path: Path) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_at_the_right_place_with_the_right_hint(path):
    lines = path.read_text().splitlines()
    expected = [match.groups() for line in lines if (match := EXPECTED.fullmatch(line))]
    code, told = checked(path)
    refused = [problem for problem in expected if problem[0] == "refused"]
    assert (code, told["accepted"]) == ((1, False) if refused else (0, True))
    found = [("refused", problem) for problem in told["problems"]]
    for kind, problem in found + [("warned", problem) for problem in told["warnings"]]:
        text = f"{problem['path']}: {problem['detail']}"
        place = (str(problem["line"]), str(problem["column"]))
        known = any((kind, *place) == (how, *at) and hint in text for how, *at, hint in expected)
        incidental = kind == "warned" and any(note in text for note in NO_MODELS)
        assert known or incidental, (kind, *place, text)
    assert len(told["problems"]) == len(refused)
    assert all(
        any(problem["detail"].find(hint.split(": ")[-1]) >= 0 for problem in told["problems"] + told["warnings"])
        for _, _, _, hint in expected
    )


def test_the_corpus_is_large_enough():
    assert sum("# refused" in path.read_text() for path in BROKEN) >= 40
