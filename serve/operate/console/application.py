"""Applications of the service: their addresses, folders, models, requests and reports."""

from __future__ import annotations

import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from serve.contract.errors import ArtifactRefused
from serve.model.artifact import peek
from serve.model.mirror import mirror_of
from serve.operate.host.service_state import ApplicationState
from serve.operate.status.report import Report
from serve.rollout import history
from serve.rollout.registry import ModelRegistry
from serve.storage.bucket import is_bucket, place

NUM_CHANGES, NUM_NEWEST = 8, 20
# Versions that can be compared, the newest. Each reads an evaluation, a few milliseconds.
NUM_COMPARED = 20
COMPARED = ["measured_on", "test_rows", "validation_rows", "outcomes", "rows", "span_ms", "log", "teachers"]
COMPARED += ["seconds", "network", "fit"]
LOGGED = ["ts_ms", "viewer", "candidates", "context", "stated", "pinned"]


@dataclass(frozen=True)
class Application:
    """One application as its file declares it; `name` is empty where none is known.

    With `clock` "event", a request says its time.
    """

    name: str
    url: str
    config: Path
    log: Path
    models: Path
    experiment: str
    clock: str

    def described(self) -> dict[str, Any]:
        """Return its paths, versions (newest first), last changes, and the experiment's report.

        The newest versions have `about`, by which to compare them. The report is one that `training
        experiment report` wrote beside the log, or None.
        """
        # Reports are on the disk: of a log in a bucket, beside the configuration.
        beside = self.config.parent if is_bucket(str(self.log)) else self.log.parent
        out, models = beside / self.experiment, mirror_of(self.models).folder
        changes = history.read(models).entries
        reports = (_read(folder / "report.json") for folder in (out, beside / "report"))
        ours = (report for report in reports if report.get("experiment") == self.experiment)
        versions = ModelRegistry(models).table()
        for one in versions[:NUM_COMPARED]:
            one["about"] = _about(models / one["version"])
        return {
            "name": self.name,
            "experiment": self.experiment,
            **{key: _shown(getattr(self, key)) for key in ("config", "log", "models")},
            "out": _shown(out),
            "versions": versions,
            "changes": msgspec.to_builtins(changes[: -NUM_CHANGES - 1 : -1]),
            "report": next(ours, None) if self.experiment else None,
        }

    def requests(self) -> list[dict[str, Any]]:
        """Return the newest logged rankings as requests, then the example beside the log.

        Each has `at_ms` (None for the example) and `request`; candidates are those shown, in their
        order, with the fields that the request stated. A log that cannot be read has none.
        """
        # These import pyarrow, which the other pages of the console do without.
        from serve.log.segments import segments

        found = []
        # The newest segment may be merged with others meanwhile; the next call finds the result.
        with suppress(OSError, ValueError, TypeError):
            served = [one.path for one in segments(self.log, "exposures")]
            for row in _newest([self.log / "exposures.parquet", *served][-1]):
                given = row.pop("context", None) or {}
                context = {key: one for key, one in given.items() if one is not None}
                stated = json.loads(row.pop("stated", None) or "{}")
                pins = {row["candidates"][place]: place + 1 for place in row.pop("pinned", None) or ()}
                row["candidates"] = [
                    {"candidate": name, "fields": stated[name]} if name in stated else name
                    for name in row["candidates"]
                ]
                request = row | {"limit": len(row["candidates"])} | ({"context": context} if context else {})
                request |= {"pins": pins} if pins else {}
                request |= {"now_ms": row["ts_ms"]} if self.clock == "event" else {}
                found.append({"at_ms": request.pop("ts_ms"), "request": request})
        example = _read(self.log / "request.json")
        return [*found, {"at_ms": None, "request": example}] if example else found


def applications(found: Report) -> list[Application]:
    """Return the applications of a report.

    Where none is known, return one with the folders that a first `serve up` would use.
    """
    config = Path(found.config).resolve()

    def application(name: str, url: str) -> Application:
        app = found.applications.get(name, ApplicationState())
        log, models = (place(getattr(app, key) or f"var/{key}", config.parent) for key in ("log", "models"))
        experiment = found.surfaces.get(name, {}).get("experiment") or {}
        return Application(name, url, config, log, models, experiment.get("name", ""), app.clock)

    return [application(name, url) for name, url in (found.our_urls or {"": found.url}).items()]


def _about(folder: Path) -> dict[str, Any]:
    """Return what the artifact in a folder says of itself; empty if its manifest is invalid.

    Besides `COMPARED` of the manifest these are `features`, the `weights` of the outcomes when they
    were measured, the winner's `us_per_candidate` in its search, and the `bytes` of each file. What
    cannot be read is left out.
    """
    if (artifact := peek(folder)) is None:
        return {}
    found = {key: artifact.manifest[key] for key in COMPARED if key in artifact.manifest}
    # A version that is refused may lack a file, and must not hide the others.
    with suppress(ArtifactRefused, OSError, ValueError):
        found["bytes"] = {name: (folder / name).stat().st_size for name in artifact.manifest["files"]}
        evaluation = json.loads(artifact.read("evaluation.json"))
        search = evaluation.get("search", {})
        cost = {one["name"]: one["us_per_candidate"] for one in search.get("leaderboard", ())}
        found["features"] = [*evaluation["features"]]
        found["weights"] = {name: one["weight"] for name, one in evaluation.get("outcomes", {}).items()}
        found["us_per_candidate"] = cost.get(search.get("winner"))
    return found


def _newest(segment: Path) -> list[dict[str, Any]]:
    from serve.storage.parquet import open_parquet

    with open_parquet(segment) as file:
        columns = [name for name in LOGGED if name in file.schema_arrow.names]
        rows = file.read_row_group(file.num_row_groups - 1, columns)
    newest: list[dict[str, Any]] = rows.slice(max(len(rows) - NUM_NEWEST, 0)).to_pylist()
    return newest[::-1]


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty without one."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else {}
    return {}


def _shown(path: Path) -> str:
    """Return a path for a command, relative to the working directory if it lies below."""
    here = str(path) if is_bucket(str(path)) else os.path.relpath(path)
    return shlex.quote(str(path) if here.startswith("..") else here)
