"""Draw plots of a page: data to a Vega-Lite specification, which `look.js` draws, and a legend.

Colours are names of variables of `look.css`, so that they follow the light, dark and print mode.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

Kind = Literal["line", "step", "points", "bars", "band"]
Spec = dict[str, Any]
# One colour for one thing on every page; other names take those of OTHERS in turn.
COLOURS: Mapping[str, str] = {
    "model": "model",
    "popular": "popular",
    "baseline": "baseline",
    "the baseline": "baseline",
    "lightgbm": "lightgbm",
    "current model": "other",
    "logistic regression": "muted",
}
OTHERS = ("text", "other", "muted", "lightgbm")
DASHES = [6, 4]
# Significant digits of the data in a page.
DIGITS = 7


@dataclass(frozen=True)
class Axis:
    """Axis of a plot: title with the unit, scale, and format of values in d3's language.

    Values that are text make an axis of categories in the order of their first mention.
    """

    title: str
    log: bool = False
    zero: bool = False
    format: str = ",.4~r"
    whole: bool = False
    domain: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Named values `y` at `x`; None and NaN break a line.

    `low` and `high` bound an interval: a band around a line, error bars on points and bars. They
    lie along `x` where `y` is text. A `band` has an interval alone. `notes` are shown on hover.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    kind: Kind = "line"
    low: Sequence[Any] | None = None
    high: Sequence[Any] | None = None
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

    `height` is of the plot in pixels; its width is the page's. Numbers that a reader needs belong
    in a table too: a plot needs a script.
    """
    shown = [one for one in series if len(one.x)]
    colours = _colours(shown)
    spec = _spec(x, y, shown, list(limits), colours, height)
    # Within a script element, "<" could end it.
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    label = html.escape(f"Plot: {title or caption}", quote=True)
    # The script stays inside its place until Vega draws there.
    return (
        "<figure>"
        + (f"<h3>{html.escape(title)}</h3>" if title else "")
        + _legend(shown, colours)
        + f'<div class="plot" role="img" aria-label="{label}"><script type="application/json">{text}</script></div>'
        + (f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
    )


def _colours(series: Sequence[Series]) -> dict[str, str]:
    free = iter(OTHERS * len(series))
    return {one.name: f"var(--{one.colour or COLOURS.get(one.name.lower()) or next(free)})" for one in series}


def _legend(series: Sequence[Series], colours: Mapping[str, str]) -> str:
    if len(series) < 2:
        return ""
    keys = "".join(
        f'<li><i class="{one.kind}{" dashed" * one.dashed}" style="color:{colours[one.name]}"></i>'
        f"{html.escape(one.name)}</li>"
        for one in series
    )
    return f'<ul class="legend">{keys}</ul>'


def _spec(
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    limits: Sequence[Limit],
    colours: Mapping[str, str],
    height: int,
) -> Spec:
    axes = {"x": _channel("x", x, series), "y": _channel("y", y, series)}
    # Intervals lie along the axis of numbers.
    along = "x" if axes["y"]["type"] == "nominal" else "y"
    layers = [_limit(limit) for limit in limits if limit.until is not None]
    bars = [one for one in series if one.kind == "bars"]
    layers += [_bars(bars, axes, "y" if along == "x" else "x", colours)] if bars else []
    for one in series:
        layers += _marks(one, axes, along, colours[one.name])
    layers += [_limit(limit) for limit in limits if limit.until is None]
    layers.append(_hover(series, x, y, axes, along, colours))
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": [row for one in series for row in _rows(one)]},
        "layer": layers,
    }


def _rows(one: Series) -> Iterable[Spec]:
    columns = {"x": one.x, "y": one.y, "l": one.low, "h": one.high, "n": one.notes}
    given = {name: values for name, values in columns.items() if values is not None}
    for values in zip(*given.values(), strict=True):
        yield {"s": one.name, **{name: _plain(value) for name, value in zip(given, values, strict=True)}}


def _plain(value: Any) -> Any:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None
    return value


def _channel(name: str, axis: Axis, series: Sequence[Series]) -> Spec:
    values = [value for one in series for value in getattr(one, name) if value is not None]
    if values and isinstance(values[0], str):
        categories = list(dict.fromkeys(values))
        return {
            "field": name,
            "type": "nominal",
            "title": axis.title or None,
            "scale": {"domain": categories},
            "sort": categories,
            "axis": {"grid": False},
        }
    scale: Spec = {"type": "log"} if axis.log else {"zero": axis.zero, "nice": axis.domain is None}
    if axis.domain is not None:
        scale |= {"domain": list(axis.domain), "clamp": True}
    ticks: Spec = {"format": axis.format, "tickMinStep": 1} if axis.whole else {"format": axis.format}
    # Plots below each other align.
    ticks |= {"minExtent": 44} if name == "y" else {"tickCount": 8}
    return {"field": name, "type": "quantitative", "title": axis.title or None, "scale": scale, "axis": ticks}


def _only(*series: Series) -> list[Spec]:
    return [{"filter": {"field": "s", "oneOf": [one.name for one in series]}}]


def _marks(one: Series, axes: Spec, along: str, colour: str) -> Iterable[Spec]:
    """Yield the layers of one series: its interval first, below its line or points."""
    if one.low is not None:
        band = one.kind not in ("points", "bars")
        mark = {"type": "area", "opacity": 0.22} if band else {"type": "rule", "strokeWidth": 2}
        if one.kind == "step":
            mark["interpolate"] = "step-after"
        ends = {along: {**axes[along], "field": "l"}, f"{along}2": {"field": "h"}}
        yield {"transform": _only(one), "mark": {**mark, "color": colour}, "encoding": axes | ends}
    if one.kind in ("line", "step"):
        mark = {"type": "line", "color": colour, "strokeWidth": 2}
        mark |= {"interpolate": "step-after"} if one.kind == "step" else {}
        mark |= {"strokeDash": DASHES} if one.dashed else {}
        yield {"transform": _only(one), "mark": mark, "encoding": axes}
    elif one.kind == "points":
        mark = {"type": "point", "filled": not one.dashed, "color": colour, "size": 60, "opacity": 1}
        yield {"transform": _only(one), "mark": mark, "encoding": axes}


def _bars(series: Sequence[Series], axes: Spec, across: str, colours: Mapping[str, str]) -> Spec:
    """Return one layer of all series of bars, side by side where there are several."""
    encoding = axes | {"color": _by_series(series, colours)}
    if len(series) > 1:
        names = [one.name for one in series]
        encoding |= {f"{across}Offset": {"field": "s", "sort": names, "scale": {"domain": names}}}
    mark: Spec = {"type": "bar", "opacity": 0.85}
    if axes[across]["type"] == "quantitative":
        mark["width" if across == "x" else "height"] = 18
    return {"transform": _only(*series), "mark": mark, "encoding": encoding}


def _by_series(series: Sequence[Series], colours: Mapping[str, str]) -> Spec:
    names = [one.name for one in series]
    scale = {"domain": names, "range": [colours[name] for name in names]}
    return {"field": "s", "type": "nominal", "scale": scale, "legend": None}


def _limit(limit: Limit) -> Spec:
    colour = f"var(--{limit.colour})"
    text = {"type": "text", "text": limit.name, "color": colour, "fontSize": 12}
    if limit.until is not None:
        at = {"x": {"datum": limit.x}, "x2": {"datum": limit.until}}
        mark: Spec = {"type": "rect", "color": colour, "opacity": 0.12}
        text |= {"align": "left", "dx": 4, "baseline": "top", "dy": 4}
        label: Spec = {"x": {"datum": limit.x}, "y": {"value": 0}}
    elif limit.x is not None:
        at = {"x": {"datum": limit.x}}
        mark = {"type": "rule", "color": colour, "strokeDash": [2, 3], "strokeWidth": 1.5}
        text |= {"align": "left", "dx": 5, "baseline": "top"}
        label = {**at, "y": {"value": 0}}
    else:
        at = {"y": {"datum": limit.y}}
        mark = {"type": "rule", "color": colour, "strokeDash": [2, 3], "strokeWidth": 1.5}
        text |= {"align": "right", "baseline": "bottom", "dy": -3}
        label = {**at, "x": {"value": "width"}}
    layers = [{"mark": mark, "encoding": at}, {"mark": text, "encoding": label}]
    return {"data": {"values": [{}]}, "layer": layers if limit.name else layers[:1]}


def _hover(
    series: Sequence[Series], x: Axis, y: Axis, axes: Spec, along: str, colours: Mapping[str, str]
) -> Spec:
    """Return the layer that marks the point nearest to the pointer and shows its values."""
    with_values = [one for one in series if one.kind != "band"]
    kinds = [(x, "x"), (y, "y")]
    tips = [{"field": "s", "title": "title"}] if any(one.name for one in series) else []
    tips += [
        {"field": name, "title": axis.title or name, **_format(axes, name, axis)} for axis, name in kinds
    ]
    transform = _only(*with_values)
    if any(one.low is not None for one in with_values):
        spec = (x if along == "x" else y).format
        spans = f"format(datum.l,'{spec}')+' to '+format(datum.h,'{spec}')"
        transform.append({"calculate": f"isValid(datum.l)?{spans}:'–'", "as": "i"})
        tips.append({"field": "i", "title": "interval"})
    if any(one.notes for one in with_values):
        tips.append({"field": "n", "title": "note"})
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    encoding = {"color": _by_series(with_values, colours), "opacity": shown, "tooltip": tips}
    select = {"type": "point", "on": "pointerover", "clear": "pointerout", "nearest": True}
    return {
        "transform": transform,
        "params": [{"name": "hover", "select": select}],
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": axes | encoding,
    }


def _format(axes: Spec, name: str, axis: Axis) -> Spec:
    return {"format": axis.format} if axes[name]["type"] == "quantitative" else {}
