"""Write a report as one self-contained HTML page of texts, tables and figures."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #111; }}
body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
div, pre {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }}
th, td {{ border-bottom: 1px solid #ccc; }}
.measured :nth-child(2) {{ text-align: right; padding-right: 2rem; font-variant-numeric: tabular-nums; }}
.numbers {{ font-size: .85rem; }}
.numbers :not(:first-child, :last-child:nth-child(8)) {{ text-align: right; }}
h2 {{ font-size: 1.05rem; margin-top: 2rem; }}
svg {{ width: 100%; height: auto; }}
figure {{ margin: 0; }}
pre {{ background: #f4f4f4; padding: 1em; font-size: .85rem; }}
figcaption, footer {{ color: #555; font-size: .85rem; }}
footer {{ margin-top: 2rem; }}
.lead {{ font-size: 1.15em; }}
</style>
<h1>{title}</h1>
{parts}
</html>
"""


def whole_page(title: str, parts: Iterable[str]) -> str:
    """Return a page of a title, which is text, and parts in HTML; empty parts are left out."""
    return PAGE.format(title=html.escape(title), parts="\n".join(filter(None, parts)))


def footer(machine: Mapping[str, object], text: str, files: Iterable[str]) -> str:
    """Return the end of a page: the machine, a text after it, and links to files beside it."""
    words = ", ".join(f"{key} {value}" for key, value in machine.items()) + text
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    return f"<footer>{html.escape(words, quote=False)} {links}</footer>"


def paragraph(text: str) -> str:
    """Return text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """Return lines of text as a list; empty if there are no lines."""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(rows: Iterable[Sequence[str]], kind: str = "plain") -> str:
    """Return rows of text, the first of which is the head, as a table of a class of the style."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    lines = [f"<tr>{line}</tr>" for line in lines]
    return "\n".join([f'<div><table class="{kind}">', *lines, "</table></div>"])


def figures(plots: Mapping[str, str]) -> str:
    """Return plots (SVG), or other parts, below their titles."""
    return "\n".join(f"<h2>{html.escape(title)}</h2>\n{svg}" for title, svg in plots.items())


def captioned(svg: str, caption: str) -> str:
    """Return a plot above its caption."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
