"""Write the plots of docs/performance.md from the output of a benchmark.

python -m serve bench fetch --json > fetch.json
python tests/support/plot_performance.py fetch.json docs/plots
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# The lines can be told apart in grey, and the same data gives the same bytes.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tabrank",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
STYLE["axes.prop_cycle"] = matplotlib.cycler(linestyle=["-", "--"], color=["0.55", "0.0"])


@matplotlib.rc_context(STYLE)
def write_plots(fetch, folder):
    """Write both plots as SVG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "viewers.svg": cost_against("viewers in the store", _cells(fetch, "viewers", "candidates", 10_000)),
        "live.svg": cost_against("live candidates", _cells(fetch, "candidates", "viewers", 100_000)),
    }
    for name, figure in found.items():
        figure.savefig(folder / name, metadata={"Date": None})
    return [folder / name for name in found]


def cost_against(x, lines):
    """Plot a line of (size, µs per request) points for each name, with a logarithmic size axis."""
    figure = Figure(figsize=(8.5, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=".", label=name)
    axes.set_xlabel(x)
    axes.set_ylabel("µs a request (median)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.legend(loc="upper left", ncols=2)
    return figure


def _cells(fetch, along, fixed, value):
    lines = {}
    for cell in fetch["cells"]:
        if cell[fixed] == value:
            name = "alone" if cell["batch"] == 1 else f"in batches of {cell['batch']}"
            lines.setdefault(name, []).append((cell[along], cell["p50_us"]))
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for path in write_plots(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(path)
