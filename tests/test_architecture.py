"""Architecture: private parts of Ray, imports of the request path, commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer

ROOT = Path(__file__).parents[1]
PACKAGES = ("serve", "training", "loadtest", "benchmarks")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PRIVATE = re.compile(r"^ray\.(\w+\.)*_\w+")


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of each import of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_root_of_serve_holds_the_entry_points_alone():
    modules = {path.stem for path in (ROOT / "serve").glob("*.py")}
    assert modules == {"__init__", "__main__", "app", "deployments"}


def test_each_module_that_imports_private_parts_of_ray_is_in_the_table():
    page = (ROOT / "docs/architecture.md").read_text()
    table = page[page.index("## Private parts of Ray") :]
    rows = [line.split(" | ") for line in table.splitlines() if "](../" in line]
    listed = {path for row in rows for path in re.findall(r"\]\(\.\./(\S+?\.py)\)", row[0])}
    for row in rows:
        code = "".join((ROOT / path).read_text() for path in re.findall(r"\.\./(\S+?\.py)", row[0]))
        parts = {name for part in re.findall(r"`([\w.]+)`", row[1]) for name in part.split(".")}
        assert {name for name in parts if name not in code} == set(), row[0]
    found = {str(path.relative_to(ROOT)) for path in MODULES if any(map(PRIVATE.match, imports(path)))}
    assert found <= listed


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from ray._private.node import Node", True),
        ("import ray.serve._private.api", True),
        ("from ray.serve import _private", True),
        ("from ray import serve", False),
        ("from serve._private import x", False),
    ],
)
def test_an_import_of_a_private_part_is_recognised(tmp_path, code, found):
    (tmp_path / "module.py").write_text(code)
    assert any(map(PRIVATE.match, imports(tmp_path / "module.py"))) is found


def test_the_ranking_imports_neither_ray_nor_torch_nor_pandas():
    code = (
        "import sys, serve.ranking.ranker, serve.features.matrix, serve.ranking.batcher, serve.http.app;"
        "print({'ray', 'torch', 'pandas', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command below a command, with the words that call it."""
    for word, child in getattr(command, "commands", {}).items():
        yield f"{name} {word}", child
        yield from commands(child, f"{name} {word}")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_command_and_every_option_has_help(package):
    app = typer.main.get_command(import_module(f"{package}.__main__").app)
    found = dict(commands(app, package))
    assert found
    assert [name for name, command in found.items() if not command.help] == []
    options = [(name, one) for name, command in found.items() for one in command.params]
    assert [(name, one.name) for name, one in options if not getattr(one, "help", "")] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_make_target_that_a_document_names_exists(document):
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    called = set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", (ROOT / document).read_text(), re.M))
    assert called
    assert {name for pair in called for name in pair if name} <= targets
