"""Draft an application for a surface: the shipped `cluster.yaml` with other names and paths."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from serve.features.surface import SHIPPED, Surface, read_surface
from serve.storage.atomic_files import draft_of
from serve.storage.bucket import is_bucket
from training.drafting.draft import Draft

# The address of rankings with the ports of the shipped `cluster.yaml`.
URL = "http://127.0.0.1:8000/v1/rank"


def write_application(drafted: Draft, log: Path, out: Path) -> list[str]:
    """Write the new folder `out` with surface.toml, a matching cluster.yaml, and a request.json.

    Returns the commands that lead from there to the first ranking. The service will keep its store
    and its models in the folder, and append to `log`.

    Raises:
        TabrankError: `out` exists or cannot be created.
    """
    # The folder is private, because the request names a viewer and the store will hold all of them.
    with draft_of(out, mode=0o700) as folder:
        (folder / "surface.toml").write_text(drafted.text, encoding="utf-8")
        (folder / "cluster.yaml").write_text(_cluster(read_surface(drafted.text), log, out), encoding="utf-8")
        (folder / "request.json").write_text(json.dumps(drafted.request, indent=1) + "\n", encoding="utf-8")
    given = ["--surface", f"{out}/surface.toml", "--log", str(log)]
    python = ["python", "-m"]
    commands = [
        [*python, "training", "search", *given, "--out", f"{out}/search", "--models", f"{out}/models"],
        [*python, "serve", "load", *given, "--store", f"lmdb:{out}/store"],
        [*python, "serve", "up", f"{out}/cluster.yaml"],
        ["curl", "-s", URL, "-H", "Content-Type: application/json", "-d", f"@{out}/request.json"],
    ]
    return [*map(shlex.join, commands)]


def _cluster(surface: Surface, log: Path, out: Path) -> str:
    """Return the shipped cluster.yaml, changed for this surface, with its comments."""
    package = SHIPPED.parent
    # An installed package holds a copy of the file.
    shipped = next(path for path in (package, package.parent) if (path / "cluster.yaml").is_file())
    text = (shipped / "cluster.yaml").read_text(encoding="utf-8")
    # A JSON string is valid YAML, whatever characters it holds.
    name = json.dumps(surface.name)
    at = str(log) if is_bucket(str(log)) else os.path.relpath(log.resolve(), out.resolve())
    log_path = json.dumps(at, ensure_ascii=False)
    for old, new in (
        ("$schema=serve", f"$schema={os.path.relpath(package, out)}"),
        ("- name: spaces\n", f"- name: {name}\n"),
        ("surface: spaces\n", "surface: surface.toml\n"),
        ("store: lmdb:var/store\n", "store: lmdb:store\n"),
        ("models: var/models\n", "models: models\n"),
        ("log: var/log\n", f"log: {log_path}\n"),
        ("name: launch\n", f"name: {name}\n"),
        ("salt: launch\n", f"salt: {name}\n"),
        # The ranker that wrote the first log may have used facts that no feature knows, so a model
        # that learns from it is biased (docs/quality.md). A few explored rankings correct that.
        ("{scorer: current, share: 1.0}\n", "{scorer: current, share: 1.0, explore: 0.01}\n"),
    ):
        assert text.count(old) == 1, f"cluster.yaml: {old!r}"
        text = text.replace(old, new)
    return text
