"""Published artifact without a network, for services with a fake scorer."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from serve.features.matrix import Features
from serve.features.rows import Schema
from serve.features.surface import read_surface
from serve.model.artifact import FILES, save
from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn

MODEL = "20260101T000000Z-abcd"


def publish_stub(models: Path, toml: str, version: str = MODEL) -> str:
    """Publish an artifact with the columns of the surface in `toml`, and return its version."""
    shutil.copytree(_made(toml, version), models / version, dirs_exist_ok=True)
    return version


@cache
def _made(toml: str, version: str) -> Path:
    surface = read_surface(toml)
    schema = Schema(surface)
    columns = Features(schema).columns
    encoder = Encoder(
        tuple(NumericColumn(name) for name in columns.numeric),
        tuple(SingleColumn(name, ()) for name in columns.single),
        tuple(MultiColumn(name, width, ()) for name, width in columns.multi),
    )
    # The artifact is written to disk once in a test run, and copied after that.
    folder = Path(tempfile.mkdtemp()) / version
    atexit.register(shutil.rmtree, folder.parent)
    outcomes = {name: {"scale": outcome.scale} for name, outcome in surface.predicted.items()}
    files = {"encoder.json": encoder.to_json().encode(), "surface.toml": toml.encode()}
    manifest = {"version": version, "state_fingerprint": schema.fingerprint, "outcomes": outcomes}
    save(folder, dict.fromkeys(FILES, b"") | files, manifest)
    return folder
