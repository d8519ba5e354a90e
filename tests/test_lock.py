"""Tests of the lock file that CI, the image and launched nodes install from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HASH = re.compile(r" --hash=sha256:[0-9a-f]{64}(?= |$)")


def entries(name):
    """Return the requirements of a file of pins, each on one line with its options."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    return [re.sub(r"\s+", " ", line) for line in text.splitlines() if not line.startswith("#")]


def pins(name):
    return [Requirement(HASH.sub("", entry).strip()) for entry in entries(name)]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    project = PROJECT["project"]
    groups = [PROJECT["build-system"]["requires"], project["dependencies"]]
    return {one for group in (*groups, *project["optional-dependencies"].values()) for one in group}


def test_every_package_of_the_lock_has_a_version_and_a_hash():
    assert len(entries("lock.txt")) > 100
    for entry, pin in zip(entries("lock.txt"), pins("lock.txt"), strict=True):
        assert HASH.search(entry), entry
        assert [spec.operator for spec in pin.specifier] == ["=="], entry
        # A URL or an option would prescribe one registry or index for all users.
        assert pin.url is None, entry


@pytest.mark.parametrize("requirement", sorted(declared()))
def test_the_lock_covers_each_requirement_of_the_project(requirement):
    wanted = Requirement(requirement)
    found = [
        pin
        for file in ("lock.txt", "constraints.txt")
        for pin in pins(file)
        if canonical(pin.name) == canonical(wanted.name)
    ]
    assert found, "run `make lock UPGRADE=`"
    for pin in found:
        assert all(wanted.specifier.contains(spec.version) for spec in pin.specifier), "run `make lock`"


def test_only_torch_is_pinned_without_a_hash_and_no_build_of_it_is_chosen():
    assert entries("constraints.txt") == [str(pin) for pin in pins("constraints.txt")]
    assert [pin.name for pin in pins("constraints.txt")] == ["torch"]
    assert "+" not in str(pins("constraints.txt")[0].specifier)
    names = {pin.name for pin in pins("lock.txt")}
    assert not {name for name in names if re.match(r"torch$|triton$|cuda-|nvidia-", name)}
    # All dependencies of torch builds have a hash.
    assert {"filelock", "networkx", "sympy"} <= names


def test_make_install_uses_only_the_lock_and_builds_no_source():
    recipe = (ROOT / "Makefile").read_text()
    strict = "--require-hashes --no-deps --only-binary :all: --requirement"
    assert f"\nLOCKED := {strict} lock.txt\n" in recipe
    (by_uv,) = re.findall(r"^\t\S+/uv pip install.*", recipe.replace("\\\n", ""), re.MULTILINE)
    by_uv, by_pip = by_uv.split("||")
    assert by_uv.endswith(" $(LOCKED) ")
    assert "$(PIP) $(LOCKED);" in by_pip
    assert f"$(PIP) {strict} .venv/uv.txt\n" in recipe
    assert "--no-deps --no-build-isolation --editable ." in recipe
    assert "pip check" in recipe
