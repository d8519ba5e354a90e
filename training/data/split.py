"""Split a log into an earlier and a later part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from serve.contract.errors import TabrankError
from serve.contract.validation import refuse_existing
from serve.log.reader import read_columns
from serve.log.snapshots import replay_snapshots, truncation_point
from serve.log.writer import MARK, write_log
from serve.storage.atomic_files import remove_folder


def split(log: Path, at: float, before: Path, after: Path) -> dict[str, int]:
    """Write the first share `at` of the exposures by time to `before`, and the rest to `after`.

    Exposures of the same time stay together. `before` holds nothing from after the cut. `after`
    keeps all rows of viewers and candidates, so that each part is a complete log. Snapshots at the
    beginning of the log go into `before`.

    Returns the number of rows of each table of each part, such as `before_exposures`.

    Raises:
        TabrankError: the log is invalid, a part would have no exposures, or an output exists.
    """
    if not 0 < at < 1:
        raise TabrankError(f"--at: {at:g} must lie between 0 and 1")
    for out in (before, after):
        refuse_existing(out)
    # If no viewer is known, the log has no table of viewers.
    tables = {name: table for name, table in read_columns(log).items() if len(table)}
    times = np.sort(tables["exposures"]["ts_ms"].to_numpy())
    cut_ms = int(times[min(int(len(times) * at), len(times) - 1)])
    if cut_ms == times[0]:
        raise TabrankError(
            f"--at: {at:g} leaves no exposure in the earlier part, because all exposures up to the cut "
            f"have the same time, {cut_ms} ms; give a larger share"
        )
    snapshots = [snapshot for snapshot in replay_snapshots(log) if snapshot.ts_ms < cut_ms]
    if truncation_point(log) and not snapshots:
        raise TabrankError(
            f"--at: {at:g} cuts the log at {cut_ms} ms, before the snapshot with which it begins; the "
            "records before the snapshot were deleted, so give a larger share"
        )
    early, late = dict(tables), dict(tables)
    for name, table in tables.items():
        if "ts_ms" in table.column_names:
            is_before = pc.fill_null(pc.less(table["ts_ms"], cut_ms), True)
            early[name] = table.filter(is_before)
            if name in ("exposures", "events"):
                late[name] = table.filter(pc.invert(is_before))
    write_log(before, early, snapshots)
    try:
        write_log(after, late)
    except BaseException:
        remove_folder(before, MARK)
        raise
    sides = {"before": early, "after": late}
    return {f"{side}_{name}": len(table) for side, parts in sides.items() for name, table in parts.items()}
