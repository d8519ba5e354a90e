"""Tests of the architecture: Ray imports, module sizes, links of documents, commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
PACKAGES = ("serve", "training", "loadtest")
RAY_FILES = {
    "serve/deployments.py",
    "serve/app.py",
    "serve/runtime/metrics.py",
    "serve/operate/run/supervisor.py",
    "serve/runtime/fast_path.py",  # stands in Ray's HTTP server
    "serve/runtime/patches.py",  # and in its controller
    "serve/config/ray_schema.py",  # asks Ray's own models
    "serve/operate/diff/consequence.py",  # asks Ray's own versions what a change does
    "serve/operate/diff/running.py",  # Ray's client of the dashboard
    "serve/operate/render/schema.py",  # has Ray check what it is to launch
    "serve/operate/plan/policy.py",  # runs Ray's own scaling code
    "serve/operate/plan/nodes.py",
    "training/fit/trainer.py",
    "training/data/stream.py",  # Ray Data
    "training/search/trials.py",  # Ray Tune
    "training/search/trial.py",
    "training/search/study.py",
    "training/search/distil.py",
    "loadtest/targets/rivals/idiomatic.py",  # what tabrank is measured against is written in it
    "loadtest/targets/throttled.py",  # the service with a slower Scorer
    "loadtest/targets/worker_node.py",  # `ray start` puts no second node on 127.0.0.1
}
MAX_LINES = 350


@cache
def imports(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def test_no_module_is_long():
    lines = {
        str(path.relative_to(ROOT)): path.read_text().count("\n")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert {path: num for path, num in lines.items() if num > MAX_LINES} == {}


def test_the_root_of_serve_holds_the_entry_points_alone():
    modules = {path.stem for path in (ROOT / "serve").glob("*.py")}
    assert modules == {"__init__", "__main__", "app", "deployments"}


def test_ray_lives_in_a_few_files():
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "ray" for name in imports(path))
    }
    assert found <= RAY_FILES


def test_the_ranking_imports_neither_ray_nor_torch_nor_pandas():
    code = (
        "import sys, serve.ranking.ranker, serve.features.matrix, serve.ranking.batcher, serve.http.app;"
        "print({'ray', 'torch', 'pandas', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("document", ["docs/architecture.md", "README.md"])
def test_every_link_leads_to_a_file(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_every_package_has_its_test_folder():
    for package in PACKAGES:
        assert (ROOT / "tests" / package).is_dir()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_every_command_has_help():
    for package, commands in (
        (
            "serve",
            (
                "up",
                "down",
                "status",
                "diff",
                "popular",
                "check",
                "render",
                "plan",
                "observe",
                "models",
                "load",
                "bench",
            ),
        ),
        (
            "training",
            (
                "simulate",
                "import",
                "surface",
                "split",
                "fit",
                "search",
                "refresh",
                "evaluate",
                "replay",
                "audit",
                "report",
                "publish",
                "experiment",
                "bench",
            ),
        ),
        ("loadtest", ("run", "knee", "compare", "freshness", "scale", "overload", "chaos", "soak")),
    ):
        done = CliRunner().invoke(import_module(f"{package}.__main__").app, ["--help"])
        assert done.exit_code == 0
        for command in commands:
            assert re.search(rf"\b{command}\b", done.stdout), (package, command)


def test_what_make_offers_is_what_the_readme_calls():
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    called = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text()))
    assert called <= targets
    assert {"install", "demo", "up", "down", "test", "check"} <= targets
