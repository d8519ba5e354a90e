"""Write cells as text, and rows of cells: aligned for a terminal, as CSV or as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def number(value: float | None, spec: str = ",.0f") -> str:
    """Format a number, by default whole and with thousands separators; None is a dash."""
    return "–" if value is None else format(value, spec)


def columns(rows: Sequence[Sequence[str]], align: Callable[[str, int], str] = str.ljust) -> str:
    """Return rows of text as aligned lines for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(align, row, widths)).rstrip() for row in rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV; floats have three decimals, and None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(f"{value:.3f}" if isinstance(value, float) else value for value in row)
    return out.getvalue()


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as a table in Markdown; the first row is its head."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))
