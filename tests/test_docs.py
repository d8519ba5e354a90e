"""The documents: links lead somewhere, and what they show is valid."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from serve.config.settings import UserConfig
from serve.features.surface import SHIPPED, read_surface
from tests.support.ranking_picture import PICTURE, draw

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SHORT = [README, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*SHORT, *ROOT.glob("CONTRIBUTING.md"), *ROOT.glob("CHANGELOG.md")]
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


def test_the_readme_begins_with_declarations_that_are_valid(tmp_path):
    first_screen = README.read_text().partition("\n## ")[0]
    (tables,) = re.findall(r"^```toml\n(.*?)^```$", first_screen, re.M | re.S)
    (arms,) = re.findall(r"^```yaml\n(.*?)^```$", first_screen, re.M | re.S)
    assert len((tables + arms).splitlines()) <= 12
    shipped = (SHIPPED / "spaces.toml").read_text()
    before, after = shipped.partition("[outcomes]")[0], shipped.partition("[baseline]")[2]
    surface = read_surface(f"{before}{tables}[baseline]{after}")
    assert list(surface.predicted) == ["join", "stay", "hide"]
    assert surface.is_bad("hide")
    config = UserConfig.from_mapping({"experiment": {"name": "e", "salt": "e", **yaml.safe_load(arms)}})
    assert list(config.misfits(surface, tmp_path)) == []
    assert [arm.name for arm in config.experiment.arms if arm.slate] == ["model"]


def words_of(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_picture_of_the_readme_has_both_rankings_and_says_why():
    reason = {"feature": "f", "label": "follows the host", "value": 1.0, "typical": 0.0, "unit": "yes/no"}
    rooms = [
        {
            "candidate": "a",
            "position": 1,
            "topic": "jazz",
            "was": 2,
            "reasons": [reason | {"contribution": 1.0}],
        },
        {"candidate": "b & c", "position": 2, "topic": "news", "was": 1, "reasons": None},
    ]
    rankings = {"before": [room | {"position": room["was"]} for room in reversed(rooms)], "after": rooms}
    places = {"before": 3, "after": 3}
    drawn = words_of(draw({"topic": "jazz", "seconds": 0.05, "control": places, "rankings": rankings}))
    assert drawn.count("room a, on jazz") == drawn.count("room b & c, on news") == 2
    assert drawn.count("was at 2") == 1
    assert "+ follows the host (yes, typical no)" in drawn
    assert set(drawn) & set(words_of(PICTURE.read_text())) >= {"Before", "1", "2"}


def test_every_example_of_a_ranking_says_how_many_are_shown():
    texts = [
        path.read_text() for path in (*SHORT, *(ROOT / "examples").rglob("*.*")) if path.suffix != ".pyc"
    ]
    asked = re.findall(r"\.rank\([^\n]*|\{\"viewer\"[^}]*\}", "\n".join(texts))
    assert len(asked) >= 4
    assert [ranking for ranking in asked if "limit" not in ranking] == []
