"""Ids of the viewers and candidates of a load, from a log or from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from loadtest.errors import LoadtestError
from loadtest.workload.profiles import Profile
from serve.contract.rankings import MAX_ID_CHARACTERS, Id
from serve.storage.conversion import IDS, converted
from serve.storage.parquet import open_parquet, readable

IMPRESSION = "impression"
Some = Annotated[list[Id], msgspec.Meta(min_length=1)]


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """Content of a file of ids."""

    viewers: Some
    candidates: Some


@dataclass(frozen=True)
class Ids:
    """Viewers with the busiest first, distinct candidates, and the last context of each viewer.

    `contexts` lacks the viewers whose context is not known.
    """

    viewers: list[str]
    candidates: list[str]
    contexts: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def find_ids(
    file: Path | None, log: Path, profile: Profile, emit: Callable[[str], None]
) -> tuple[Ids, Profile]:
    """Return the ids of `file`, or of `log` if there is no file, and the profile for these ids.

    If there are fewer candidates than a request of the profile has, each request has all of them,
    and `emit` gets a sentence that says so.

    Raises:
        TabrankError: if `read_ids` or `read_log_ids` raises it.
    """
    ids = read_ids(file) if file else read_log_ids(log, profile.candidates)
    num = len(ids.candidates)
    if num < profile.candidates:
        emit(f"{file or log} has only {num} candidates; each request ranks these, not {profile.candidates}")
    return ids, replace(profile, candidates=min(num, profile.candidates))


def read_ids(path: Path) -> Ids:
    """Return the ids of a JSON file `{"viewers": [...], "candidates": [...]}`, without repeats.

    Raises:
        LoadtestError: if the file holds anything else.
    """
    where = f"--ids {path}"
    try:
        given = msgspec.json.decode(path.read_bytes(), type=_Given)
    except OSError as error:
        raise LoadtestError(f"{where}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        form = f'{{"viewers": [...], "candidates": [...]}} with ids of 1 to {MAX_ID_CHARACTERS} characters'
        raise LoadtestError(f"{where}: {error}; it must hold {form}") from None
    return Ids(list(dict.fromkeys(given.viewers)), list(dict.fromkeys(given.candidates)))


def read_log_ids(log: Path, num_candidates: int) -> Ids:
    """Return the viewers of a log's exposures, and the candidates that are live at its end.

    If fewer than `num_candidates` are live, those that ended last are added. Test traffic is
    ignored.

    Raises:
        LoadtestError: if there is no such log, or it lacks a column, viewers or candidates.
    """
    if not log.is_dir():
        raise LoadtestError(f"--log {log}: no such folder; name a log folder, or a file of ids with --ids")
    exposures = _table(log, "exposures", ("viewer", "ts_ms"), ("context", "traffic"))
    exposures = exposures.filter(pc.fill_null(pc.not_equal(exposures["traffic"], "test"), True))
    exposures = exposures.filter(pc.is_valid(exposures["viewer"]))
    if not len(exposures):
        raise LoadtestError(f"--log {log}: no exposure has a viewer; name a file of ids with --ids")
    candidates = _candidates(log, pc.max(exposures["ts_ms"]).as_py(), num_candidates)
    seen = exposures.group_by("viewer").aggregate([("viewer", "count")])
    seen = seen.sort_by([("viewer_count", "descending"), ("viewer", "ascending")])
    return Ids(seen["viewer"].to_pylist(), candidates, _contexts(exposures))


def read_log_kinds(log: Path) -> dict[str, int]:
    """Return the number of events of each kind in a log, without impressions.

    A load test does not post impressions, because the service counts them from its own answers.

    Raises:
        LoadtestError: if the log holds no such events.
    """
    counts = pc.value_counts(_table(log, "events", ("kind",), ())["kind"]).to_pylist()
    kinds = {row["values"]: row["counts"] for row in counts if row["values"] != IMPRESSION}
    if not kinds:
        raise LoadtestError(f"--log {log}: it holds no viewer events; name a log that has some")
    return dict(sorted(kinds.items()))


def _candidates(log: Path, end_ms: int, num_candidates: int) -> list[str]:
    rows = _table(log, "candidates", ("id",), ("ends_ms", "ts_ms"))
    # The log may continue after its last exposure.
    end_ms = max(end_ms, pc.max(rows["ts_ms"]).as_py() or 0)
    # A changed candidate has several rows, of which only the last may hold its end.
    ends = rows.group_by("id").aggregate([("ends_ms", "max")])
    ended = pc.fill_null(pc.less_equal(ends["ends_ms_max"], end_ms), False)
    order = ends.append_column("ended", ended).sort_by(
        [("ended", "ascending"), ("ends_ms_max", "descending"), ("id", "ascending")]
    )
    ids: list[str] = order["id"].to_pylist()
    num_live = len(ids) - int(pc.sum(ended).as_py() or 0)
    if not ids:
        raise LoadtestError(f"--log {log}: it holds no candidates; name a log that has some")
    return ids[: max(num_live, num_candidates)]


def _contexts(exposures: pa.Table) -> dict[str, dict[str, Any]]:
    """Return the context of each viewer's last exposure, without fields that are null."""
    if not pa.types.is_struct(exposures["context"].type):
        return {}
    exposures = exposures.sort_by("ts_ms")
    last = {viewer: row for row, viewer in enumerate(exposures["viewer"].to_pylist())}
    contexts = exposures["context"].take(pa.array(last.values())).to_pylist()
    known = ({name: value for name, value in (of or {}).items() if value is not None} for of in contexts)
    return {viewer: context for viewer, context in zip(last, known, strict=True) if context}


def _table(log: Path, name: str, needed: tuple[str, ...], wanted: tuple[str, ...]) -> pa.Table:
    path = log / f"{name}.parquet"
    path = path if path.exists() else log / name
    if not path.exists():
        raise LoadtestError(f"--log {log}: {name}.parquet is missing; name a folder that holds a log")
    with readable(path):
        data = ds.dataset(path, format="parquet")
        for file in data.files:
            open_parquet(Path(file)).close()
        for column in needed:
            if column not in data.schema.names:
                raise LoadtestError(f"{path}: the column {column!r} is missing; name another log with --log")
        known = set(data.schema.names)
        # A wanted column that the table lacks is null in each row.
        columns = {n: ds.field(n) if n in known else pc.scalar(None) for n in (*needed, *wanted)}
        return converted(data.to_table(columns=columns), IDS[name])
