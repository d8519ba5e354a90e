"""A model with a column that may know the future is published only after a person's word."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from serve.model.artifact import current, load
from tests.support.leaky_log import dwell, write_leaky
from tests.training.evaluation.test_foresight import surface
from training.__main__ import app
from training.drafting.draft import draft
from training.evaluation.verdict import outcome
from training.search.commands import not_published
from training.search.task import SearchSettings, Task

QUESTION = "candidate.dwell orders far better than all features that read no such column"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held") / "log"
    write_leaky(folder, "shop", dwell)
    return folder


def test_a_fit_asks_and_publish_refuses(tmp_path, log):
    toml, made, models = tmp_path / "leaky.toml", tmp_path / "made", tmp_path / "models"
    toml.write_text(surface(dwell).text)
    run = CliRunner().invoke
    fitted = run(app, ["fit", "--surface", str(toml), "--log", str(log), "--out", str(made), "--epochs", "1"])
    assert fitted.exit_code == 1, fitted.stderr
    published = run(app, ["publish", "--model", str(made), "--models", str(models)])
    assert published.exit_code
    assert current(models) is None
    artifact = load(made)
    evaluation = json.loads(artifact.read("evaluation.json"))
    told = [fitted.stdout, published.stderr, artifact.read("MODEL_CARD.md").decode()]
    told += [artifact.read("report.html").decode(), artifact.manifest["verdict"], *evaluation["suspects"]]
    assert [text for text in told if QUESTION not in text] == []
    assert "may know the future" in outcome(evaluation)[1]


@pytest.mark.parametrize(("word", "is_asked"), [("", True), (", known_before = true", False)])
def test_a_search_asks_until_the_word_is_given(log, word, is_asked):
    task = Task.read(surface(dwell, word), log, SearchSettings(60.0), lambda share: None)
    assert [QUESTION in told for told in task.suspects] == [True] * is_asked


def test_the_refusal_names_no_command_that_is_refused_too(tmp_path):
    told = not_published(tmp_path / "out", tmp_path / "none", is_doubted=True)
    assert told == "not published: the service ranks by popularity"


def test_a_draft_leaves_the_column_out_and_says_how_to_use_it(log):
    drafted = draft(log)
    (line,) = (line for line in drafted.text.splitlines() if "dwell" in line)
    assert line.startswith("# dwell is left out: it orders far better than all features")
    assert "declare it with known_before = true" in line
    assert "dwell" not in json.dumps(drafted.request)
