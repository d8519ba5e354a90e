"""Draw plots as inline SVG, all in one style; the same data gives the same bytes.

They are readable in grey: lines differ by their dashes. matplotlib comes with the extras.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

LINES = cycler(linestyle=["-", "--", "-", ":"], color=["0.55", "0.3", "0.0", "0.0"])
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": LINES,
    "svg.fonttype": "none",
    "svg.hashsalt": "tabrank",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
P = ParamSpec("P")


def plot(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Make a function that draws a figure return it as SVG, in the common style."""

    @wraps(draw)
    def drawn(*args: P.args, **named: P.kwargs) -> str:
        with matplotlib.rc_context(STYLE):
            return as_svg(draw(*args, **named))

    return drawn


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG; call it in the style in which the figure was drawn."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]
