"""What can be known of the image without building it."""

import re
import tomllib
from pathlib import Path

from serve.render.pods import HOME, USER

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [tuple(line.split(None, 1)) for line in LINES if line and not line.startswith("#")]


def arguments(step):
    return [rest for name, rest in STEPS if name == step]


def test_what_is_copied_exists_and_is_sent():
    sources = {source for rest in arguments("COPY") for source in rest.split()[:-1]}
    assert {"serve", "constraints.txt", "pyproject.toml"} <= sources
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == sent
    assert all((ROOT / source).exists() for source in sources)


def test_it_installs_the_pinned_versions_and_extras_that_exist():
    (extras,) = [rest.removeprefix("EXTRAS=") for rest in arguments("ARG")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    (install,) = [rest for rest in arguments("RUN") if "pip install" in rest]
    assert "--constraint constraints.txt" in install


def test_it_runs_as_the_pods_do():
    assert arguments("USER") == [str(USER)]
    assert arguments("WORKDIR")[-1] == HOME


def test_no_secret_is_in_it():
    assert not re.search(r"(?i)(token|password|secret)\s*=", "\n".join(rest for _, rest in STEPS))


def test_python_is_the_one_that_is_tested():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert arguments("FROM") == [f"python:{wanted.removeprefix('>=')}-slim"]
