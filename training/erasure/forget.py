"""Forget: erase viewers from a log, its snapshots and the store behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.rankings import MAX_ID_CHARACTERS
from serve.features.rows import Schema
from serve.log.lease import Lease
from serve.log.snapshots import FOLDER, META, Snapshot, clean_up, leftovers, rewrite, snapshots
from serve.model import artifact
from serve.storage.atomic_files import exclusive
from serve.storage.bucket import place
from training.erasure.states import find_store, forget_in_store, forget_without_store, forgotten
from training.erasure.tables import ORDER, ErasedViewers

# The largest file of ids, which holds some hundred thousand. To forget so many takes seconds,
# during which a running service waits.
MAX_BYTES = 4 << 20
# How long to wait for the log's lock, which the compaction of a large log holds for minutes.
WAIT_S = 600.0


def read_viewers(path: Path) -> list[str]:
    """Read the ids of a UTF-8 file with one id per line, without repetitions.

    In a `.jsonl` file, each line is a JSON string, such as "two\\nlines". Empty lines are ignored.
    Spaces belong to an id; the end of its line (LF or CRLF) does not.

    Raises:
        TabrankError: the file cannot be read, is too large, holds no id, or an id is too long or
            not a JSON string.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise TabrankError(f"{path}: has over {MAX_BYTES >> 20} MiB; split it, and run it in parts")
        viewers = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\r").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TabrankError(f"{path}: not readable as UTF-8 text: {error}") from None
    for number, viewer in enumerate(viewers, 1):
        if path.suffix == ".jsonl" and viewer:
            try:
                viewers[number - 1] = viewer = msgspec.json.decode(viewer, type=str)
            except msgspec.DecodeError as error:
                raise TabrankError(f"{path}, line {number}: not a JSON string: {error}") from None
        if len(viewer) > MAX_ID_CHARACTERS:
            raise TabrankError(f"{path}, line {number}: an id has at most {MAX_ID_CHARACTERS} characters")
    if not any(viewers):
        raise TabrankError(f"{path}: holds no id; write one viewer's id on each line")
    return list(dict.fromkeys(filter(None, viewers)))


def forget(
    log: Path,
    viewers: Sequence[str],
    models: Path | None = None,
    *,
    without_journal: bool = False,
    dry_run: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Erase viewers from a log and from the store behind it; with `dry_run`, only count their rows.

    Without `models`, look where the service of the log has them, by its lease. If the store cannot
    be read, nothing is erased, unless nobody needs it or it is lost for good (`without_journal`).

    Returns:
        `viewers` and `unknown`: how many ids were given, and how many of them were found nowhere.
        `rows`: how many rows of each table, and of the `snapshots`, are theirs. `store`: its
        address, None if there is none here. `models`: as `trained_on` returns them. They are of
        the `versions` in `models_folder`, which is None if the folder is not here.

    Raises:
        TabrankError: a file is damaged, the state of a snapshot is unknown, or the store or the log
            cannot be read or written. What was erased stays erased, and another attempt continues.
    """
    lock = log / ".lock"
    held = partial(exclusive, lock, f"{log}: its service merges segments; try again later", WAIT_S)
    lease, store, known = find_store(log, viewers, is_lost=without_journal)
    models = models or place((lease or Lease).models)
    erased = ErasedViewers(viewers)
    with held() if lock.exists() or not dry_run else nullcontext():
        if not dry_run:
            clean_up(log)
        # Drafts of segments still hold the viewers. A running service writes other drafts once it
        # has forgotten them.
        drafts = [draft for name in ORDER for draft in log.glob(f"{name}/.*.partial")]
        drafts += [log / f".{name}.parquet.partial" for name in ORDER]
        counts, states = erased.scan(log), _snapshots(log, erased)
    unknown = erased.viewers - erased.found - known
    if not dry_run:
        if lease and store:
            forget_in_store(log, lease, store, viewers)
        elif lease:
            forget_without_store(log, lease, viewers, filter(None, erased.requests))
        with held():
            erased = ErasedViewers(viewers)
            counts, states = erased.scan(log), _snapshots(log, erased)
            for draft in drafts:
                draft.unlink(missing_ok=True)
            for number, ((name, path), num) in enumerate(counts.items()):
                for share in erased.erase(name, path, num):
                    progress((number + share) / len(counts))
            for snapshot, schema, _ in states:
                rewrite(snapshot, forgotten(snapshot, schema, erased.viewers))
    rows = {of: sum(num for (name, _), num in counts.items() if name == of) for of in ORDER}
    if store and not dry_run:
        # Do not count the new rows that record that the store forgot the viewers.
        rows["viewers"] -= len(viewers)
    return {
        "viewers": len(viewers),
        "unknown": len(unknown),
        "rows": rows | {"snapshots": sum(num for *_, num in states)},
        "store": store or None,
        "has_lease": lease is not None,
        "models_folder": str(models) if models.is_dir() else None,
        "versions": len(artifact.versions(models)),
        "models": trained_on(models, log, erased),
        "dry_run": dry_run,
    }


def _snapshots(log: Path, erased: ErasedViewers) -> list[tuple[Snapshot, Schema, int]]:
    """Return each snapshot that has rows of the viewers, with its schema and their number."""
    found, known, folder = [], snapshots(log), log / FOLDER
    # Or not written to the end: `clean_up` deletes those.
    held = {path.parent for path in set(folder.glob("*/*")).difference(leftovers(log))}
    if strays := held.difference(snapshot.path for snapshot in known):
        raise TabrankError(
            f"{min(strays)}: not readable as a snapshot, so it may hold these viewers; restore its {META} from a "
            "backup, or move it out of the log; then run the command again"
        )
    ids = pa.array(erased.viewers, pa.string())
    for snapshot in known:
        names = snapshot.ids("viewer")
        if theirs := names.filter(pc.is_in(names, ids)).to_pylist():
            erased.found.update(theirs)
            snapshot.verify()
            found.append((snapshot, snapshot.schema(), len(theirs)))
    return found


def trained_on(models: Path, log: Path, erased: ErasedViewers) -> dict[str, str | None]:
    """Return the published versions that learned, or may have learned, from the viewers' exposures.

    The value is None if the version did, or the reason why nobody can tell.
    """
    found: dict[str, str | None] = {}
    times = sorted(erased.shown_ms)
    for version in artifact.versions(models):
        try:
            manifest = artifact.load(models / version).manifest
            begin, end, source = manifest["span_ms"][0], manifest["seen_until_ms"], manifest["log"]
        except KeyError:
            found[version] = "its manifest does not name its log"
        except TabrankError as error:
            found[version] = str(error)
        else:
            if source != str(log.resolve()):
                found[version] = f"it was fitted on {source}, which may be a copy"
            elif bisect_left(times, begin) < bisect_left(times, end + 1):
                found[version] = None
            elif begin < erased.first_ms:
                found[version] = "the log no longer has its first rows"
    return found


def describe(log: Path, result: Mapping[str, Any]) -> list[str]:
    """Return the result of `forget` as lines of text."""

    def count(num: int, what: str) -> str:
        return f"{num:,} {what if num != 1 else what.removesuffix('s')}"

    rows = ", ".join(count(num, name) for name, num in result["rows"].items())
    learned, folder = len(result["models"]), result["models_folder"]
    done = "dry run, nothing changed" if result["dry_run"] else "erased"
    store = "none here; one that comes back is refused until `serve load` fills it again"
    if result["store"] or not result["has_lease"]:
        store = result["store"] or "none behind this log"
    told = f", {learned:,} learned from them, or may have:" if learned else ", none learned from them"
    looked = f"{count(result['versions'], 'versions')} in {folder}" + (told if result["versions"] else "")
    lines = [
        f"{log}: rows of {count(result['viewers'], 'viewers')}: {rows}; {done}",
        f"store: {store}",
        f"found nowhere: {count(result['unknown'], 'viewers')}",
        f"models: {looked if folder else 'not looked at; name their folder with --models'}",
    ]
    for version, why in result["models"].items():
        verdict = "learned from them; fit and publish another" if why is None else f"may have learned: {why}"
        lines.append(f"{version} {verdict}")
    return lines
