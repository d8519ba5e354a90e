"""Tests of the image's Dockerfile, without a build."""

import re
import tomllib
from pathlib import Path

import yaml

from serve.operate.render.manifests import HOME

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line and not line.startswith("#")]


def arguments(step):
    return [rest for name, rest in STEPS if name == step]


def defaults():
    return dict(rest.split("=", 1) for rest in arguments("ARG"))


def test_what_is_copied_exists_and_is_sent():
    sources = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    assert {"serve", "lock.txt", "pyproject.toml"} <= sources
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == sent
    assert all((ROOT / source).exists() for source in sources)


def test_what_the_wheel_includes_is_copied_before_the_install():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    steps = [rest for name, rest in STEPS if name in ("COPY", "RUN")]
    installed = next(i for i, rest in enumerate(steps) if "pip install" in rest)
    copied = {source for rest in steps[:installed] for source in rest.split()[:-1]}
    assert set(build["targets"]["wheel"]["force-include"]) <= copied


def test_its_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(defaults()["EXTRAS"].split(",")) <= set(known)


def test_it_runs_as_the_pods_do():
    golden = (ROOT / "tests/serve/operate/render/rayservice.golden.yaml").read_text()
    service = next(one for one in yaml.safe_load_all(golden) if one["kind"] == "RayService")
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert arguments("USER") == [str(head["template"]["spec"]["securityContext"]["runAsUser"])]
    assert arguments("WORKDIR")[-1] == HOME


def test_python_is_the_one_that_is_tested():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert arguments("FROM") == ["${BASE}"]
    assert defaults()["BASE"] == f"python:{wanted.removeprefix('>=')}-slim"
