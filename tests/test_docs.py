"""The documents: links lead somewhere, the README is short, all together are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SHORT = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*SHORT, *ROOT.glob("CONTRIBUTING.md")]
MAX_LINE = 100


def prose(document: Path) -> str:
    """Return the text without code: what looks like a link or a heading in there is neither."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    """Return the relative links that lead to no file or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        is_broken = not target.exists() or (anchor and anchor not in anchors(target))
        if not re.match(r"https?://", link) and is_broken:
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", LINKED, ids=lambda path: path.stem)
def test_every_relative_link_leads_to_a_file_and_a_heading(document):
    assert broken_links(document) == []


@pytest.mark.parametrize("link", ["gone.md", "a.md#gone", "#gone", "a.md#once-code"])
def test_a_link_that_leads_nowhere_is_found(tmp_path, link):
    (tmp_path / "a.md").write_text("# A title, with *marks*\n\n```\n# Once code\n```\n")
    document = tmp_path / "b.md"
    document.write_text(
        f"# B\n\n[a](a.md#a-title-with-marks) [b](#b) [c](https://example.com/x) [d\ne]({link})\n"
    )
    assert broken_links(document) == [link]


def test_the_readme_fits_its_width():
    lines = README.read_text().splitlines()
    assert [line for line in lines if len(line) > MAX_LINE] == []


def test_every_example_of_a_ranking_says_how_many_are_shown():
    texts = [
        path.read_text() for path in (*SHORT, *(ROOT / "examples").rglob("*.*")) if path.suffix != ".pyc"
    ]
    asked = re.findall(r"\.rank\([^\n]*|\{\"viewer\"[^}]*\}", "\n".join(texts))
    assert len(asked) >= 4
    assert [ranking for ranking in asked if "limit" not in ranking] == []
