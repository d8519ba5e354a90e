"""Plots of a page: data and axes in Python, which `look.js` makes a Vega-Lite plot of.

Colours are names of variables of `look.css`, so that they follow the light, dark and print mode.
`look.js` has the colours of the known names: the same for the same scorer on every page.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from numpy.typing import NDArray

Values = Sequence[Any] | NDArray[Any]
Kind = Literal["line", "step", "points", "bars", "band"]
# Significant digits of the data in a page.
DIGITS = 7
# Longer lines are thinned, so that hours by the second do not swell a page.
MOST_VALUES = 1_500


@dataclass(frozen=True)
class Axis:
    """Axis of a plot: title with the unit, scale, and format of values in d3's language.

    Values that are text make an axis of categories in the order of their first mention. `whole`
    leaves out ticks between whole numbers; `log` needs values above 0. Along an axis of time, the
    legend has the latest value of each line.
    """

    title: str
    log: bool = False
    zero: bool = False
    format: str = ",.4~r"
    whole: bool = False
    is_time: bool = False


@dataclass(frozen=True)
class Series:
    """Named values `y` at `x`; None and NaN break a line.

    `low` and `high` bound an interval: a band around a line, error bars on points and bars. They
    lie along `x` where `y` is text. A `band` has an interval alone. `dashed` points are hollow.
    `notes` are shown on hover. `colour` is a variable of look.css, by default that of the name.
    """

    name: str
    x: Values
    y: Values
    kind: Kind = "line"
    low: Values | None = None
    high: Values | None = None
    colour: str | None = None
    dashed: bool = False
    notes: Sequence[str] | None = None


@dataclass(frozen=True)
class Limit:
    """Labelled straight line at a value of one axis; with `until`, a shaded span of the x axis."""

    name: str
    x: float | None = None
    y: float | None = None
    until: float | None = None
    colour: str = "limit"


def plot(
    title: str,
    x: Axis,
    y: Axis,
    series: Iterable[Series],
    limits: Iterable[Limit] = (),
    *,
    caption: str = "",
    height: int = 260,
) -> str:
    """Return a figure in HTML: title, legend, plot with values on hover, and caption.

    It is empty without values. A line with very many values shows the least and the largest of each
    stretch.

    `height` is of the plot in pixels; its width is the page's. Numbers that a reader needs belong
    in a table too: a plot needs a script.
    """
    shown = [
        _thinned({key: _plain(value) for key, value in vars(one).items() if value is not None})
        for one in series
        if len(one.x)
    ]
    if not shown:
        return ""
    given = {"x": vars(x), "y": vars(y), "series": shown, "limits": [*map(vars, limits)], "height": height}
    # Within a script element, "<" could end it.
    text = json.dumps(given, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    named = " by ".join(axis.title for axis in (y, x) if axis.title)
    label = html.escape(f"Plot: {title or caption or named}")
    # The script stays inside its place until Vega draws there.
    return (
        f"<figure>{f'<h3>{html.escape(title)}</h3>' if title else ''}"
        f'<div class="plot" role="img" aria-label="{label}"><script type="application/json">{text}</script></div>'
        f"{f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''}</figure>"
    )


def reliability(points: Sequence[Sequence[float]]) -> str:
    """Plot the observed rate against the predicted one, from 0, of equally large parts of rows."""
    top = max(max(point) for point in points)
    predicted, observed = zip(*points, strict=True)
    lines = [
        Series("exactly right", [0, top], [0, top], colour="muted", dashed=True),
        Series("model", predicted, observed),
    ]
    caption = f"Each corner is one of {len(points)} equal parts of the rows, ordered by prediction. "
    caption += "Below the dashed line the predictions are too high."
    x, y = (Axis(f"{name} rate", zero=True, format=".2~%") for name in ("predicted", "observed"))
    return plot("", x, y, lines, caption=caption)


def _thinned(one: dict[str, Any]) -> dict[str, Any]:
    """Keep the least and the largest of every few values, and a gap: no peak and no gap is lost."""
    y, every = one["y"], math.ceil(3 * len(one["y"]) / MOST_VALUES)
    if every <= 3:
        return one
    kept: set[int] = set()
    for i in range(0, len(y), every):
        part = range(len(y))[i : i + every]
        known = sorted((j for j in part if y[j] is not None), key=y.__getitem__)
        kept.update([j for j in part if y[j] is None][:1], known[:1], known[-1:])
    return {
        key: [values[i] for i in sorted(kept)] if isinstance(values, list) else values
        for key, values in one.items()
    }


def _plain(value: Any) -> Any:
    """Return values as JSON has them, with few digits and None for what is not finite."""
    if isinstance(value, (str, bool, Integral)):
        return int(value) if type(value) not in (str, bool) else value
    if isinstance(value, Real):
        number = float(value)
        return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None
    return value if value is None else [_plain(one) for one in value]
