"""Check the contents of the wheel and the sdist in a folder, and try the wheel outside of the tree.

`python tests/support/check_dist.py FOLDER` exits with 1 and a sentence on the first problem.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("serve", "training", "loadtest")
COMMANDS = (
    *((package, "--help") for package in PACKAGES),
    ("serve", "check"),
    ("serve", "render", "azure", "--image", "IMAGE"),
    ("training", "simulate", "--out", "log", "--rows", "2000", "--days", "0.1"),
    ("training", "surface", "--log", "log", "--out", "my"),
    ("serve", "check", "my/cluster.yaml"),
)


def compare(archive: Path, found: set[str], expected: set[str]) -> None:
    """Refuse an archive that lacks files, or that holds files which git does not track."""
    for problem, names in (("lacks", expected - found), ("should not hold", found - expected)):
        if names:
            sys.exit(f"{archive.name} {problem} {', '.join(sorted(names)[:5])} ({len(names)} files)")


def check_contents(wheel: Path, sdist: Path, tracked: set[str]) -> None:
    """Compare both archives with the files that git tracks."""
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    shipped = {f"serve/{name}" for name in tracked & {"cluster.yaml"}}
    compare(wheel, found, {name for name in tracked if name.split("/")[0] in PACKAGES} | shipped)
    with tarfile.open(sdist) as file:
        found = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    compare(sdist, found, tracked | {"PKG-INFO"})


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel in a new environment in `folder`, and run its commands in an empty one.

    The packages that it depends on are those of this environment: to install them again would
    download 2 GB.
    """
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet"]
    subprocess.run([*install, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (installed,) = (folder / "venv/lib").glob("python*/site-packages")
    # Python ignores .pth files in a path that a .pth file names: this skips the editable install.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = folder / "empty"
    empty.mkdir()
    (empty / "cluster.yaml").write_bytes((ROOT / "cluster.yaml").read_bytes())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for command in COMMANDS:
        done = subprocess.run(
            [python, "-m", *command], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"python -m {' '.join(command)} failed in {wheel.name}:\n{done.stderr}")
    where = [python, "-c", "import serve; print(serve.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    if not found.stdout.startswith(str(installed)):
        sys.exit(f"the commands ran from {found.stdout.strip()}, not from {wheel.name}")


def main(dist: Path) -> None:
    """Check the one wheel and the one sdist of `dist`."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    check_contents(wheel, sdist, set(filter(None, listed.stdout.split("\0"))))
    with tempfile.TemporaryDirectory() as folder:
        try_wheel(wheel, Path(folder))
    print(f"{wheel} and {sdist} hold what git tracks; the commands of the wheel run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
