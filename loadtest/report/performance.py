"""Plots of docs/performance.md, from the output of the benchmarks:

python -m serve bench fetch --json > fetch.json
python -m loadtest compare --json > compare.json
python -m loadtest.report.performance fetch.json compare.json docs/plots
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.report.plots import cost_against, latency_against_rate
from loadtest.workload.profiles import Slo

Report = Mapping[str, Any]


def write_plots(fetch: Report, compare: Report, folder: Path) -> list[Path]:
    """Write the four plots as SVG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "latency.svg": _latency(compare),
        "candidates.svg": cost_against(
            "candidates a request", {"alone": [(cell["slate"], cell["p50_us"]) for cell in fetch["sweep"]]}
        ),
        "viewers.svg": cost_against("viewers in the store", _cells(fetch, "viewers", "candidates", 10_000)),
        "live.svg": cost_against("live candidates", _cells(fetch, "candidates", "viewers", 100_000)),
    }
    for name, svg in found.items():
        (folder / name).write_text(svg)
    return [folder / name for name in found]


def _latency(compare: Report) -> str:
    """Return the plot of each service's p90 over its offered rates, without looks and overloads."""
    lines = {}
    for name, service in compare["services"].items():
        steps = [s for s in service["steps"] if s["phase"] in ("search", "again", "confirm") and s["kept_up"]]
        lines[name] = [(step["rate_rps"], step["p90_ms"]) for step in steps]
    return latency_against_rate(lines, Slo(**compare["slo"]))


def _cells(fetch: Report, along: str, fixed: str, value: int) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in fetch["cells"]:
        if cell["store"] == "lmdb" and cell[fixed] == value:
            name = "alone" if cell["batch"] == 1 else f"in batches of {cell['batch']}"
            lines.setdefault(name, []).append((cell[along], cell["p50_us"]))
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    read = [json.loads(Path(path).read_text()) for path in sys.argv[1:3]]
    for path in write_plots(read[0], read[1], Path(sys.argv[3])):
        print(path)
