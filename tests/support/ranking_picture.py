"""The picture at the top of README: `python tests/support/ranking_picture.py [REPORT.json]`.

Draws docs/images/ranking.svg from what a service answered in a run of `make demo`: one viewer's
ranking before and after five joins, with reasons. Without an argument it reads the report that
`make demo` leaves in var/demo.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from serve.contract.rankings import Reason
from serve.contract.reasons import YES_NO, in_words

ROOT = Path(__file__).parents[2]
REPORT, PICTURE = ROOT / "var/demo/report.json", ROOT / "docs/images/ranking.svg"
WIDTH, COLUMN, GAP, MARGIN = 1000, 472, 16, 20
LINE, ROW, TOP = 18, 30, 96
# Rows of a column, besides those of the topic that the viewer joins.
NUM_TOP = 5
NUM_REASONS = 3
KEPT_UNITS = {YES_NO, "s"}
SIGNS = (
    "+ speaks for the room, − against it. Clicked and joined are shares of the rooms shown. "
    "Typical: the median, or most frequent value, of the 55."
)
# The card has its own background, so that it can be read on a page of any colour.
STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328; }
  .card { fill: #ffffff; stroke: #d1d9e0; }
  .title { font-size: 17px; font-weight: 600; }
  .head { font-weight: 600; }
  .dim { fill: #59636e; }
  .small { font-size: 12.5px; }
  .box { fill: #f6f8fa; }
  .hot { fill: #ddf4e4; }
  .up { fill: #116329; font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .card { fill: #0d1117; stroke: #3d444d; }
    .dim { fill: #9198a1; }
    .box { fill: #151b23; }
    .hot { fill: #12351f; }
    .up { fill: #7ee2a0; }
  }
"""


def text(x: float, y: float, words: str, kind: str = "", end: bool = False) -> str:
    """Return a line of text that begins, or ends, at x."""
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}"{anchor}>{escape(words)}</text>'


def reasons_of(room: dict[str, Any]) -> list[str]:
    """Return the strongest reasons of a room, each with its direction; few units fit the column."""
    reasons = msgspec.convert(room["reasons"] or [], list[Reason])[:NUM_REASONS]
    short = [replace(one, unit=one.unit if one.unit in KEPT_UNITS else None) for one in reasons]
    return [f"{'+' if one.contribution > 0 else '−'} {in_words(one)}" for one in short]


def rows_of(ranking: list[dict[str, Any]], topic: str) -> list[dict[str, Any]]:
    """Return the first rooms of a ranking, and those on the topic further down."""
    return [room for room in ranking if room["position"] <= NUM_TOP or room["topic"] == topic]


def column(x: float, head: str, rooms: list[dict[str, Any]], topic: str) -> Iterator[str | float]:
    """Yield the elements of a ranking, and at last the y at which it ends."""
    yield text(x, TOP - 14, head, "head")
    y, last = float(TOP), 0
    for room in rooms:
        if room["position"] > last + 1:
            yield text(x + 30, y + 14, "⋮", "dim")
            y += LINE + 8
        last = room["position"]
        hot = room["topic"] == topic
        reasons = reasons_of(room) if hot else []
        height = ROW + LINE * len(reasons) + (4 if reasons else 0)
        kind = "hot" if hot else "box"
        yield f'<rect x="{x:g}" y="{y:g}" width="{COLUMN}" height="{height}" rx="6" class="{kind}"/>'
        yield text(x + 34, y + 20, str(last), "head", end=True)
        yield text(x + 48, y + 20, f"room {room['candidate']}, on {room['topic']}")
        if hot and room["was"] != last:
            yield text(x + COLUMN - 12, y + 20, f"was at {room['was']}", "up", end=True)
        for i, reason in enumerate(reasons):
            yield text(x + 48, y + ROW + 10 + i * LINE, reason, "small dim")
        y += height + 6
    yield y


def draw(topic: dict[str, Any]) -> str:
    """Return the SVG of the rankings in a demo's report."""
    joined, parts, ends = topic["topic"], [], []
    heads = (("before", "Before"), ("after", f"After 5 joins of rooms on {joined}"))
    for i, (when, head) in enumerate(heads):
        x = MARGIN + i * (COLUMN + GAP)
        *elements, end = column(x, head, rows_of(topic["rankings"][when], joined), joined)
        parts += elements
        ends.append(end)
    late_ms = 1e3 * topic["seconds"]
    bottom = max(ends) + 20 + LINE
    foot = f"The first ranking with the new order came {late_ms:.0f} ms after the joins were acknowledged."
    if topic["control"]["before"] == topic["control"]["after"]:
        foot += f" For another viewer, the new room stayed at {topic['control']['after']}."
    feet = [text(MARGIN, bottom - LINE, SIGNS, "dim small"), text(MARGIN, bottom, foot, "dim small")]
    title = "One viewer's order of 55 live rooms"
    body = "\n".join([text(MARGIN, 40, title, "title"), *parts, *feet])
    size = f'width="{WIDTH}" height="{bottom + 20:g}" viewBox="0 0 {WIDTH} {bottom + 20:g}"'
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{bottom + 19:g}" rx="10" class="card"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{title}</title>'
    return f"{head}\n<style>{STYLE}</style>\n{card}\n{body}\n</svg>\n"


if __name__ == "__main__":
    report = json.loads(Path(sys.argv[1] if sys.argv[1:] else REPORT).read_text())
    PICTURE.write_text(draw(report["topic"]))
