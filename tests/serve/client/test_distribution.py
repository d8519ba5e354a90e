"""The wheel of `tabrank-client`, installed in an environment without tabrank."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.check_dist import check_client, install_client, run
from tests.support.live_service import Live

pytestmark = [pytest.mark.integration, pytest.mark.no_ray]
ROOT = Path(__file__).parents[3]
PROJECT, CLIENT = (
    tomllib.loads((ROOT / name).read_text()) for name in ("pyproject.toml", "serve/client/pyproject.toml")
)
URL = "http://127.0.0.1:8000"
CODE = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.S))
# The packages of tabrank's environment follow those of the wheel's, for pytest and Hypothesis.
PYTEST = f"""
import os, sys
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
sys.path.append({sysconfig.get_path("purelib")!r})
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not integration"]))
"""
SETTINGS = """
[pytest]
filterwarnings = error
markers =
    integration
    no_ray
    proof
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT / "serve/client", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    return install_client(wheel, tmp_path_factory.mktemp("environment"))


def test_it_has_the_version_and_the_requirements_of_tabrank(wheel):
    assert wheel.name == f"tabrank_client-{PROJECT['project']['version']}-py3-none-any.whl"
    required = [*PROJECT["project"]["optional-dependencies"]["client"], *PROJECT["project"]["dependencies"]]
    assert set(CLIENT["project"]["dependencies"]) < set(required)
    assert {"httpx2", "msgspec"} == {re.split(r"\W", one)[0] for one in CLIENT["project"]["dependencies"]}


def test_it_holds_its_own_modules_typed_and_no_other_name(wheel):
    with zipfile.ZipFile(wheel) as file:
        text = {name: file.read(name).decode() for name in file.namelist()}
    assert {"tabrank_client/py.typed", "tabrank_client/LICENSE", "tabrank_client/calls.py"} < set(text)
    assert [
        name for name, code in text.items() if name.endswith(".py") and re.search(r"\bserve\.", code)
    ] == []
    assert not [name for name in text if "hatch" in name]


def test_it_is_small_and_imports_msgspec_alone(python, wheel):
    assert re.fullmatch(r"\d distributions, \d\.\d MB", check_client(python, wheel))


def test_a_client_that_imports_more_is_refused(python, wheel, monkeypatch):
    monkeypatch.setattr("tests.support.check_dist.IMPORTED", "print('msgspec', 'ray', 'tabrank_client')")
    with pytest.raises(
        SystemExit, match="imports msgspec, ray, tabrank_client; it should import msgspec alone"
    ):
        check_client(python, wheel)


def test_the_code_of_its_document_ranks_and_is_typed(python, tmp_path, log_folder):
    assert CODE.count(URL) == 2
    (example := tmp_path / "example.py").write_text(CODE)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path]
    run([*mypy, example], tmp_path)
    with Live(tmp_path, log_folder, clock="wall").listening() as url:
        # A process that has just started on a busy test machine needs more than a page's 250 ms.
        code = CODE.replace(", timeout_s=0.25", "").replace(f'"{URL}"', f'"{url}", timeout_s=9.0')
        code += "\nprint(answer.rung, *sorted(order))"
        # The two lines that the document shows, of the viewer who is forgotten and of nobody.
        printed = ["full True", "full False", "full a b"]
        assert run([python, "-c", code], tmp_path).strip().splitlines() == printed


def test_its_tests_pass_there(python, tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    # The others start the service, or install this wheel.
    tests = (Path(__file__).with_name(f"test_{name}.py") for name in ("clients", "exchange", "retries"))
    for path in (*tests, ROOT / "tests/support/scripted_server.py"):
        code = path.read_text().replace("serve.client", "tabrank_client").replace("tests.support.", "")
        (tmp_path / path.name).write_text(code.replace("serve.contract", "tabrank_client.contract"))
    assert re.search(r"^[6-9]\d passed", run([python, "-c", PYTEST], tmp_path), re.M)
