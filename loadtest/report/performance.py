"""Plots of docs/performance.md, from the output of a benchmark:

python -m serve bench fetch --json > fetch.json
python -m loadtest.report.performance fetch.json docs/plots
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from loadtest.report.plots import cost_against
from loadtest.report.report import Report


def write_plots(fetch: Report, folder: Path) -> list[Path]:
    """Write the three plots as SVG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {"alone": [(cell["slate"], cell["p50_us"]) for cell in fetch["sweep"]]}
    found = {
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
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for path in write_plots(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(path)
