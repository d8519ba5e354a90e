"""Write the folder of a report: report.json, report.html and more files, complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from serve.log.atomic_files import draft_of, write_whole
from serve.report.page import bullets, figures, footer, paragraph, table, whole_page

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
    ending: str,
    more: Mapping[str, str] = MappingProxyType({}),
    *,
    new: bool = True,
) -> None:
    """Write report.json, report.html and the files in `more` to a new folder, or an existing one.

    A new folder is complete or not there at all. `title` and `ending` are text; `body` holds parts
    in HTML. The page ends with the machine, the ending, and links to the files.

    Raises:
        TabrankError: if a new `folder` exists.
    """
    files = {"report.json": json.dumps(report, indent=2) + "\n", **more}
    page = whole_page(title, [*body, footer(report["machine"], ending, files)])
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
        numbers = table([("", "measured", "required"), *self.rows])
        return [paragraph(self.lead), bullets(self.notes), numbers, figures(plots)]


def with_reasons(line: str, reasons: Iterable[str]) -> str:
    """Return a line for a terminal with reasons below it."""
    return "\n".join([line, *(f"    - {reason}" for reason in reasons)])


def indented(numbers: Mapping[str, Any]) -> list[Row]:
    """Return indented table rows of numbers by kind, for use below their sum."""
    return [(f"\u2003{kind}", f"{number:,}", "") for kind, number in numbers.items()]
