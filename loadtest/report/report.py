"""Write the folder of a report: report.json, report.html and more files, complete or not at all."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serve.log.atomic_files import draft_of, write_whole

Report = dict[str, Any]
Row = tuple[str, str, str]
"""Name of a number, its measured value, and what is required."""
# Follows the machine in a footer.
SAME_CORES = ", the load generator on the same cores. "


def write_report(
    folder: Path,
    report: Report,
    title: str,
    body: Iterable[str],
    footer: str,
    more: Mapping[str, str] = MappingProxyType({}),
    *,
    new: bool = True,
) -> None:
    """Write report.json, report.html and the files in `more` to a new folder, or an existing one.

    A new folder is complete or not there at all. `title` and `footer` are text; `body` holds parts
    in HTML. The footer follows the machine and links to the files.

    Raises:
        TabrankError: if a new `folder` exists.
    """
    files = {"report.json": json.dumps(report, indent=2) + "\n", **more}
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    page = PAGE.format(
        title=html.escape(title),
        body="\n".join(filter(None, body)),
        footer=html.escape(machine + footer, quote=False),
        links=", ".join(f'<a href="{name}">{name}</a>' for name in files),
    )
    with draft_of(folder) if new else nullcontext(folder) as target:
        for name, text in {**files, "report.html": page}.items():
            write_whole(target / name, text.encode())


@dataclass(frozen=True)
class Findings:
    """Findings on one load, for the terminal and for the page; `notes` are sentences."""

    title: str
    lead: str
    rows: Sequence[Row]
    notes: Sequence[str]

    def __str__(self) -> str:
        """Return them as lines for a terminal."""
        numbers = [f"  {name}: {', '.join(filter(None, values))}" for name, *values in self.rows]
        return "\n".join([f"{self.title}, {self.lead}", *numbers, *(f"  - {note}" for note in self.notes)])

    def body(self, plots: Mapping[str, str]) -> list[str]:
        """Return them and plots as parts of a page."""
        numbers = table(("", "measured", "required"), self.rows, "measured")
        return [paragraph(self.lead), bullets(self.notes), numbers, figures(plots)]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV; floats have three decimals, and None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(f"{value:.3f}" if isinstance(value, float) else value for value in row)
    return out.getvalue()


def number(value: float | None, digits: int = 0) -> str:
    """Format a number with thousands separators; None is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def with_reasons(line: str, reasons: Iterable[str]) -> str:
    """Return a line for a terminal with reasons below it."""
    return "\n".join([line, *(f"    - {reason}" for reason in reasons)])


def paragraph(text: str) -> str:
    """Return text as a paragraph in HTML."""
    return f"<p>{html.escape(text)}</p>"


def bullets(lines: Iterable[str]) -> str:
    """Return lines of text as a list in HTML; empty if there are no lines."""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "plain") -> str:
    """Return rows of text as a table in HTML; `kind` is its class."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f'<table class="{kind}">\n' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned lines for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def indented(numbers: Mapping[str, Any]) -> list[Row]:
    """Return indented table rows of numbers by kind, for use below their sum."""
    return [(f"\u2003{kind}", f"{number:,}", "") for kind, number in numbers.items()]


def figures(plots: Mapping[str, str]) -> str:
    """Return plots (SVG) with their titles in HTML."""
    return "\n".join(f"<h2>{html.escape(title)}</h2>\n{svg}" for title, svg in plots.items())


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #111; }}
body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }}
th, td {{ border-bottom: 1px solid #ccc; }}
.measured :nth-child(2) {{ text-align: right; padding-right: 2rem; }}
.measured :nth-child(2) {{ font-variant-numeric: tabular-nums; }}
h2 {{ font-size: 1.05rem; margin-top: 2rem; }}
svg {{ width: 100%; height: auto; }}
pre {{ background: #f4f4f4; padding: 1em; overflow: auto; }}
footer {{ color: #555; font-size: .85rem; margin-top: 2rem; }}
</style>
<h1>{title}</h1>
{body}
<footer>{footer} {links}</footer>
</html>
"""
