"""Write a report as one self-contained HTML page: verdict, figures, plots, sortable tables.

A page of this kit is `whole_page(title, [banner(...), tiles(...), plot(...), table(...),
footer(...)])`, with `plot` of `serve.report.charts`. Parts are HTML; their arguments are text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

Tone = Literal["good", "bad", "unsure", "neutral"]
SIGNS: Mapping[Tone, str] = {"good": "✓", "bad": "✕", "unsure": "?", "neutral": "i"}
HERE = Path(__file__).parent
VEGA = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
PAGE = (HERE / "page.html").read_text(encoding="utf-8")
# A cell that begins with a number or an interval, perhaps with a unit; no date or version.
NUMBER = re.compile(r"\[?[-+−±]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%|x)?($|[ ;,])", re.IGNORECASE)
MISSING = {"", "–"}
NAME = re.compile(r"[a-z]\d")


def whole_page(title: str, parts: Iterable[str]) -> str:
    """Return a page of a title, which is text, and parts in HTML; empty parts are left out.

    Vega is embedded only where a part has a plot, and the script of tables only where it is used.
    """
    body = "\n".join(filter(None, parts))
    has_plot = 'class="plot"' in body
    names = [*(f"assets/{name}" for name in VEGA if has_plot)]
    names += ["look.js"] if has_plot or "<table" in body else []
    scripts = "\n".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>" for name in names)
    style = (HERE / "look.css").read_text(encoding="utf-8")
    return PAGE.format(title=html.escape(title), style=style, parts=body, scripts=scripts)


def banner(tone: Tone, verdict: str, reason: str, doubt: str) -> str:
    """Return the first part of a page: verdict in a few words, its reason, and its limits.

    `tone` is shown by colour and by shape; `verdict` has to say the same in words. `doubt` is a
    sentence on what the report does not say, or how its numbers might mislead.
    """
    # Names such as p99 keep their letter; other reasons get a capital one.
    words = f"<p{' class=name' * bool(NAME.match(reason))}>{html.escape(reason)}</p>"
    if doubt:
        words += f'<p class="doubt"><b>What this does not say:</b> {html.escape(doubt)}</p>'
    return (
        f'<section class="verdict {tone}" aria-label="Verdict"><span class="sign" aria-hidden="true">'
        f"{SIGNS[tone]}</span><strong>{html.escape(verdict)}</strong>{words}</section>"
    )


def tiles(numbers: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of the most important numbers: (label, value with its unit, note or limit)."""
    cells = "".join(
        f'<div><dt>{html.escape(label)}</dt><dd class="value">{html.escape(value)}</dd>'
        f'<dd class="note">{html.escape(note)}</dd></div>'
        for label, value, note in numbers
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def section(title: str, *parts: str) -> str:
    """Return parts below a title; empty if all parts are."""
    body = "\n".join(filter(None, parts))
    return f"<h2>{html.escape(title)}</h2>\n{body}" if body else ""


def table(rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return rows of text, the first of which is the head, as a table that sorts by its columns.

    Columns of numbers are aligned right. Without rows below the head the result is empty.
    """
    head, *body = [*rows] or [()]
    if not body:
        return ""
    kinds = [' class="number"' if _is_numeric(column) else "" for column in zip(*body, strict=True)]

    def line(tag: str, cells: Iterable[str]) -> str:
        return "".join(
            f"<{tag if cell else 'td'}{kind}>{html.escape(cell)}</{tag[:2] if cell else 'td'}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )

    # A region that scrolls is reachable by keyboard, and needs a name.
    label = html.escape(caption or f"Table: {', '.join(filter(None, head))}", quote=True)
    return "\n".join(
        [
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="sortable">',
            f"<caption>{html.escape(caption)}</caption>" if caption else "",
            f"<thead><tr>{line('th scope=col', head)}</tr></thead><tbody>",
            *(f"<tr>{line('td', row)}</tr>" for row in body),
            "</tbody></table></div>",
        ]
    )


def details(summary: str, *parts: str) -> str:
    """Return parts behind a line that opens them."""
    body = "\n".join(filter(None, parts))
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}</details>" if body else ""


def footer(machine: Mapping[str, object], text: str, files: Iterable[str]) -> str:
    """Return the end of a page: the machine, a text after it, and links to files beside it."""
    words = ", ".join(f"{key} {value}" for key, value in machine.items()) + text
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in files)
    return f"<footer>{html.escape(words, quote=False)} {links}</footer>"


def paragraph(text: str) -> str:
    """Return text as a paragraph; empty if the text is."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def bullets(lines: Iterable[str]) -> str:
    """Return lines of text as a list; empty if there are no lines."""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _is_numeric(column: Sequence[str]) -> bool:
    known = [cell.strip() for cell in column if cell.strip() not in MISSING]
    return bool(known) and all(NUMBER.match(cell) for cell in known)
