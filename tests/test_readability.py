"""The documents are easy to read, as textlint judges with the rules of tests/web/.textlintrc.json.

A sentence has at most 200 characters, which is about 33 words, and at most six commas. Brackets
and quotation marks come in pairs, and no word is doubled. Code and tables do not count.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = ROOT / "tests/web"
TEXTLINT = WEB / "node_modules/.bin/textlint"
NAMED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "serve/http/api.md")
DOCUMENTS = [*(ROOT / name for name in NAMED), *sorted((ROOT / "docs").glob("*.md"))]

pytestmark = pytest.mark.skipif(not TEXTLINT.exists(), reason="needs textlint: npm ci --prefix tests/web")


def lint(paths: Iterable[Path]) -> dict[Path, list[tuple[int, str, str]]]:
    """Return the findings of each document: line, rule and message."""
    command = [TEXTLINT, "--config", WEB / ".textlintrc.json", "--format", "json", *paths]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=300, check=False)
    # textlint exits with 1 if it found something, and prints nothing if it found nothing.
    assert done.returncode in (0, 1), done.stderr
    found: dict[Path, list[tuple[int, str, str]]] = {}
    for page in json.loads(done.stdout or "[]"):
        findings = [(one["line"], one["ruleId"], one["message"]) for one in page["messages"]]
        found[Path(page["filePath"])] = findings
    return found


@pytest.fixture(scope="module")
def findings():
    return lint(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_the_document_is_easy_to_read(document, findings):
    assert findings.get(document, []) == []


def test_what_is_hard_to_read_is_found(tmp_path):
    (tmp_path / "hard.md").write_text(
        "# Hard\n\n"
        f"This sentence goes {'on and ' * 40}on.\n\n"
        "It has one, two, three, four, five, six, seven, eight parts.\n\n"
        "A bracket (is left open.\n\nA word is is doubled.\n"
    )
    (found,) = lint([tmp_path / "hard.md"]).values()
    assert [(line, rule.rpartition("/")[2]) for line, rule, _ in found] == [
        (3, "sentence-length"),
        (5, "max-comma"),
        (7, "no-unmatched-pair"),
        (9, "write-good"),
    ]


def test_code_and_tables_do_not_count(tmp_path):
    long = "goes on and on, " * 20
    (tmp_path / "easy.md").write_text(
        f"# Easy\n\n    {long}\n\n```\n{long}\n```\n\n| a |\n|---|\n| {long} |\n"
    )
    assert not any(lint([tmp_path / "easy.md"]).values())
