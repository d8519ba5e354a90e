"""True effect of what was shown: expectations under the data-generating process, without noise.

The expected clicks of an exposure are the sum over its candidates of
P(examined) P(click | examined); the same holds for joins.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.features.slots import F64
from training.experiment.rerun.drive import Served

Effect = dict[str, dict[str, float | None]]


def expected(served: Served) -> dict[str, F64]:
    """Return the expected `clicks` and `joins` of each exposure."""
    looked = served.record.flat("examination")
    chances = {"clicks": "p_click", "joins": "p_join"}
    return {name: _sums(served, looked * served.record.flat(chance)) for name, chance in chances.items()}


def by_arm(served: Served) -> dict[str, dict[str, Any]]:
    """Return exposures, viewers, and `expected` and `observed` clicks and joins, by arm."""
    arms, means = np.array(served.arm), expected(served)
    flags = {"clicks": "clicked", "joins": "joined"}
    seen = {name: _sums(served, served.record.flat(flag)) for name, flag in flags.items()}
    found = {}
    for arm in dict.fromkeys(served.arm):
        mine = arms == arm
        num_viewers = len(np.unique(served.viewer[mine]))
        found[arm] = {
            "exposures": int(mine.sum()),
            "viewers": num_viewers,
            "expected": _measures({name: sums[mine] for name, sums in means.items()}, num_viewers),
            "observed": _measures({name: sums[mine] for name, sums in seen.items()}, num_viewers),
        }
    return found


def effects(arms: Mapping[str, Mapping[str, Any]], control: str) -> dict[str, Effect]:
    """Return the effects of the other arms on each expected measure, absolute and relative."""
    base = arms[control]["expected"]
    return {
        arm: {
            name: {
                "absolute": value - base[name],
                "relative": (value - base[name]) / base[name] if base[name] else None,
            }
            for name, value in found["expected"].items()
        }
        # The visits of this world are drawn before anything is shown.
        | {"daily_active_viewers": {"absolute": 0.0, "relative": 0.0}}
        for arm, found in arms.items()
        if arm != control
    }


def write_truth(path: Path, served: Served) -> None:
    """Write a row for each exposure, with lists aligned with the logged order of candidates."""
    columns: dict[str, Any] = {
        "request_id": served.request_id,
        "ts_ms": served.ts_ms,
        "viewer": [f"v{who:07d}" for who in served.viewer.tolist()],
        "arm": served.arm,
        "rung": served.rung,
        **{f"expected_{name}": values for name, values in expected(served).items()},
    }
    pq.write_table(pa.table(columns | served.record.truth()), path, compression="zstd")


def table(result: Mapping[str, Any]) -> str:
    """Format the true effects as text."""
    lines = []
    for title, part in (("as shown", result["shown"]), ("each arm alone", result["alone"])):
        for arm, effect in (part or {"effect": {}})["effect"].items():
            sizes = ", ".join(f"{name} {_percent(size['relative'])}" for name, size in effect.items())
            lines.append(f"true effect of {arm} ({title}): {sizes}")
    return "\n".join(lines)


def _sums(served: Served, values: F64) -> F64:
    """Return the sum of each exposure's values."""
    exposure = np.repeat(np.arange(len(served.arm)), [len(shown) for shown in served.record.shown])
    return np.bincount(exposure, values, len(served.arm)).astype(np.float64)


def _measures(sums: Mapping[str, F64], num_viewers: int) -> dict[str, float]:
    per_exposure = {f"{name}_per_exposure": float(values.mean()) for name, values in sums.items()}
    per_viewer = {f"{name}_per_viewer": float(values.sum() / num_viewers) for name, values in sums.items()}
    return per_exposure | per_viewer


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2%}"
