"""The distributions hold what git tracks, and the wheels run without the tree."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.check_dist import check_contents, main
from tests.support.try_release import own_data

ROOT = Path(__file__).parents[1]


def archives(folder, files):
    """Write a wheel and an sdist of these files."""
    wheel, sdist = folder / "x.whl", folder / "x.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ["x.dist-info/METADATA", *(name for name in files if name.startswith("serve/"))]:
            file.writestr(name, "")
    with tarfile.open(sdist, "w:gz") as file:
        for name in ["PKG-INFO", *files]:
            file.addfile(tarfile.TarInfo(f"x-0.1/{name}"), io.BytesIO())
    return wheel, sdist


def test_archives_of_the_tracked_files_are_accepted(tmp_path):
    files = ["README.md", "serve/app.py"]
    check_contents(*archives(tmp_path, files), set(files))


def test_the_wheel_holds_a_copy_of_cluster_yaml(tmp_path):
    files = {"cluster.yaml", "serve/app.py"}
    wheel, sdist = archives(tmp_path, files)
    with pytest.raises(SystemExit, match=r"x\.whl lacks serve/cluster\.yaml"):
        check_contents(wheel, sdist, files)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["README.md", "serve/app.py", "var/log/x"], r"x.tar.gz should not hold var/log/x \(1 files\)"),
        (["README.md", "serve/app.py", "serve/leftover"], "x.whl should not hold serve/leftover"),
        (["README.md"], "x.whl lacks serve/app.py"),
    ],
)
def test_other_contents_are_refused_by_name(files, problem, tmp_path):
    with pytest.raises(SystemExit, match=problem):
        check_contents(*archives(tmp_path, files), {"README.md", "serve/app.py"})


def test_a_release_is_tried_by_readmes_commands_for_your_own_data():
    first, *_, ask = own_data()
    assert first.startswith("python -m training import csv --source rows.csv")
    assert ask.endswith("-d @my/request.json")


def test_the_release_workflow_publishes_only_what_it_has_tried():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert jobs["publish"]["needs"] == "build"
    run = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert any("make dist" in line for line in run)
    assert any("tests.support.try_release dist" in line for line in run)
    # Only the job that uploads may ask for the right to publish.
    assert "permissions" not in jobs["build"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


@pytest.mark.integration
@pytest.mark.no_ray
def test_the_wheels_of_this_tree_run_in_environments_of_their_own(tmp_path, capsys):
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    client = [*build, "--target", "wheel"]
    subprocess.run(client, cwd=ROOT / "serve/client", check=True, capture_output=True)
    main(tmp_path)
    said = capsys.readouterr().out
    assert "the commands of the wheel run" in said
    assert re.search(r"installs \d distributions, ", said)
