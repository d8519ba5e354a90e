"""Tests of the image's Dockerfile, without a build."""

import re
import tomllib
from pathlib import Path

from serve.operate.render.pods import HOME, USER

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


def test_it_installs_the_pinned_versions_and_extras_that_exist():
    extras = defaults()["EXTRAS"]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    (install,) = [rest for rest in arguments("RUN") if "pip install" in rest]
    first, second = re.findall(r"-m pip install ([^&]*)", install)
    assert "--require-hashes --requirement pip.txt" in first
    for option in ("--constraint constraints.txt", "--constraint lock.txt", "--build-constraint lock.txt"):
        assert f" {option} " in second
    # The project itself has no hash; everything else with a hash is checked.
    assert " --no-require-hashes --only-binary :all: " in second


def test_it_runs_as_the_pods_do():
    assert arguments("USER") == [str(USER)]
    assert arguments("WORKDIR")[-1] == HOME


def test_no_secret_is_in_it():
    assert not re.search(r"(?i)(token|password|secret)\s*=", "\n".join(rest for _, rest in STEPS))


def test_python_is_the_one_that_is_tested():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert arguments("FROM") == ["${BASE}"]
    assert defaults()["BASE"] == f"python:{wanted.removeprefix('>=')}-slim"
