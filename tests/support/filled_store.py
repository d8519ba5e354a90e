"""LMDB stores filled from a log.

In a test run, a log is loaded into a store once. Further stores with the same content are copies.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from serve.features.surface import load_surface
from serve.ingest.backfill import load

STORE = "lmdb:store"


def fill_store(surface_path: Path, log_folder: Path) -> None:
    """Fill the store `lmdb:store` beside the file of the surface, as `serve load` does."""
    surface = load_surface(str(surface_path))
    made = _home(surface_path.read_text(), _content(log_folder))
    if not (made / "store").exists():
        load(surface, log_folder, STORE, made)
    shutil.copytree(made / "store", surface_path.parent / "store", symlinks=True)


@cache
def _home(toml: str, content: str) -> Path:
    """Return the folder of a store that a log with this content has filled."""
    home = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, home)
    return home


def _content(folder: Path) -> str:
    found = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()
