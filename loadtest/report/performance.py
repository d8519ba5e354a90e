"""Plots of docs/performance.md, from the output of the benchmarks:

python -m serve bench fetch --json > fetch.json
python -m loadtest compare --json > compare.json
python -m loadtest.report.performance fetch.json compare.json docs/plots
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from loadtest.report.plots import cost_against, latency_against_rate
from loadtest.report.report import Report
from loadtest.workload.profiles import Slo


def write_plots(fetch: Report, compare: Report, folder: Path) -> list[Path]:
    """Write the four plots as SVG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    # The p90 of each service over its offered rates, without looks and overloads.
    latency = {
        name: [
            (step["rate_rps"], step["p90_ms"])
            for step in service["steps"]
            if step["phase"] in ("search", "again", "confirm") and step["kept_up"]
        ]
        for name, service in compare["services"].items()
    }
    sweep = {"alone": [(cell["slate"], cell["p50_us"]) for cell in fetch["sweep"]]}
    found = {
        "latency.svg": latency_against_rate(latency, Slo(**compare["slo"])),
        "candidates.svg": cost_against("candidates a request", sweep),
        "viewers.svg": cost_against("viewers in the store", _cells(fetch, "viewers", "candidates", 10_000)),
        "live.svg": cost_against("live candidates", _cells(fetch, "candidates", "viewers", 100_000)),
    }
    for name, svg in found.items():
        (folder / name).write_text(svg)
    return [folder / name for name in found]


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
