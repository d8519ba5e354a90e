"""Files of other projects that pages embed."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import serve.report

ROOT = Path(__file__).parents[3]
ASSETS = Path(serve.report.__file__).parent / "assets"
LISTED = tomllib.loads((ASSETS / "assets.toml").read_text())


def test_every_asset_is_listed_and_unchanged() -> None:
    found = {path.name for path in ASSETS.iterdir()} - {"assets.toml", "LICENSES.txt"}
    assert found == set(LISTED)
    for name, listed in LISTED.items():
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == listed["sha256"], name


def test_every_asset_has_its_licence_text() -> None:
    texts = (ASSETS / "LICENSES.txt").read_text()
    heads = [line for line in texts.splitlines() if line.startswith("==== ")]
    for listed in LISTED.values():
        assert any(listed["package"] in head for head in heads), listed["package"]


def test_the_distribution_states_the_licences_of_all_it_ships() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert str(ASSETS.relative_to(ROOT) / "LICENSES.txt") in project["license-files"]
    named = {one for listed in LISTED.values() for one in listed["licence"].split(" AND ")}
    assert named | {"Apache-2.0"} == set(project["license"].split(" AND "))


def test_what_the_bundles_contain_has_its_licence_text() -> None:
    texts = (ASSETS / "LICENSES.txt").read_text()
    for name in (
        "d3-array",
        "d3-ease",
        "delaunator",
        "fast-json-patch",
        "semver",
        "topojson-client",
        "Esprima",
    ):
        assert name in texts


def test_no_script_can_end_the_element_that_embeds_it() -> None:
    for name in LISTED:
        assert "</script" not in (ASSETS / name).read_text(), name
