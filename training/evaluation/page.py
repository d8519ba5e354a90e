"""HTML skeleton of training's reports: a self-contained page of sections, tables and figures."""

from __future__ import annotations

import html
from collections.abc import Sequence

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85em; }}
td, th {{ border: 1px solid #bbb; padding: .25em .6em; text-align: right; vertical-align: top; }}
td:first-child, th:first-child, td:last-child:nth-child(8) {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
figure {{ margin: 0; }}
figcaption {{ color: #444; }}
.lead {{ font-size: 1.15em; }}
</style>
<h1>{title}</h1>
{parts}
</html>
"""


def whole_page(title: str, parts: Sequence[str]) -> str:
    """Return the page of parts in HTML."""
    return PAGE.format(title=html.escape(title), parts="\n".join(parts))


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table; the first row is its head."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body]
    return f"<div><table>{''.join(lines)}</table></div>"


def as_figure(svg: str, caption: str) -> str:
    """Return a figure with its caption."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"
