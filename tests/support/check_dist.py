"""Check the contents of the distributions in a folder, and try both wheels outside of the tree.

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
# What builds the other wheel, `tabrank-client`.
CLIENT = {"serve/client/pyproject.toml", "serve/client/hatch_build.py"}
MAX_DISTRIBUTIONS, MAX_BYTES = 9, 15_000_000
# Print the packages that the client imports, but for the standard library and what msgspec imports
# where it is installed.
IMPORTED = """
import sys
before = set(sys.modules)
import tabrank_client
known = {*sys.stdlib_module_names, "typing_extensions"}
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - known))
"""
COMMANDS = (
    *((package, "--help") for package in PACKAGES),
    ("serve", "check"),
    ("serve", "render", "kubernetes", "--help"),
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
    packaged = {name for name in tracked - CLIENT if name.split("/")[0] in PACKAGES}
    compare(wheel, found, packaged | shipped)
    with tarfile.open(sdist) as file:
        found = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    compare(sdist, found, tracked | {"PKG-INFO"})


def new_environment(folder: Path) -> Path:
    """Create an environment in `folder`, and return its Python."""
    venv.create(folder / "venv", symlinks=True)
    return folder / "venv/bin/python"


def pip(python: Path) -> list[str]:
    """Return the command that installs into the environment of `python`."""
    options = ["--python", str(python), "--disable-pip-version-check", "--quiet"]
    return [sys.executable, "-m", "pip", *options, "install"]


def install_client(wheel: Path, folder: Path) -> Path:
    """Install the client's wheel, with the packages of the lock, in a new environment in `folder`.

    Returns its Python.
    """
    python = new_environment(folder)
    uv = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", python]
    what = [str(wheel), "--constraint", str(ROOT / "lock.txt")]
    # uv has the packages in its cache if it installed this environment.
    if subprocess.run([*uv, "--offline", *what], capture_output=True, check=False).returncode:
        subprocess.run([*pip(python), "--no-require-hashes", *what], check=True)
    return python


def check_client(python: Path, wheel: Path) -> str:
    """Refuse an installed client that is large or imports too much; return its size in words."""
    (installed,) = (python.parents[1] / "lib").glob("python*/site-packages")
    num = len(list(installed.glob("*.dist-info")))
    num_bytes = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    size = f"{num} distributions, {num_bytes / 1e6:.1f} MB"
    if num > MAX_DISTRIBUTIONS or num_bytes >= MAX_BYTES:
        sys.exit(f"{wheel.name} installs {size}; at most {MAX_DISTRIBUTIONS}, {MAX_BYTES / 1e6:.0f} MB")
    imported = run([python, "-c", IMPORTED], python.parent).split()
    if imported != ["msgspec", "tabrank_client"]:
        sys.exit(f"{wheel.name} imports {', '.join(imported)}; it should import msgspec alone")
    return size


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command in `folder` without the tree on its path; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the wheel in a new environment in `folder`, and run its commands in an empty one.

    The packages that it depends on are those of this environment: to install them again would
    download 2 GB.
    """
    python = new_environment(folder)
    subprocess.run([*pip(python), "--no-deps", "--no-index", str(wheel)], check=True)
    (installed,) = (folder / "venv/lib").glob("python*/site-packages")
    # Python ignores .pth files in a path that a .pth file names: this skips the editable install.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = folder / "empty"
    empty.mkdir()
    (empty / "cluster.yaml").write_bytes((ROOT / "cluster.yaml").read_bytes())
    for command in COMMANDS:
        run([python, "-m", *command], empty)
    found = run([python, "-c", "import serve; print(serve.__file__)"], empty).strip()
    if not found.startswith(str(installed)):
        sys.exit(f"the commands ran from {found}, not from {wheel.name}")


def main(dist: Path) -> None:
    """Check the two wheels and the one sdist of `dist`."""
    (wheel,), (sdist,) = dist.glob("tabrank-*.whl"), dist.glob("*.tar.gz")
    (client,) = dist.glob("tabrank_client-*.whl")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    check_contents(wheel, sdist, set(filter(None, listed.stdout.split("\0"))))
    with tempfile.TemporaryDirectory() as folder:
        try_wheel(wheel, Path(folder))
    print(f"{wheel} and {sdist} hold what git tracks; the commands of the wheel run")
    with tempfile.TemporaryDirectory() as folder:
        size = check_client(install_client(client, Path(folder)), client)
    print(f"{client} installs {size}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
