"""Write the folder of a report: report.json, report.html and more files, complete or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loadtest.measure.verdict import Verdict
from serve.report.page import Tone, banner, bullets, figures, footer, paragraph, table, tiles, whole_page
from serve.storage.atomic_files import draft_of, write_whole

Report = dict[str, Any]
Row = tuple[str, str, str]
"""Name of a number, its measured value, and what is required."""
# Follows the machine in a footer.
SAME_CORES = ", the load generator on the same cores. "
TONES: Mapping[Verdict, Tone] = {"held": "good", "not held": "bad", "void": "unsure"}


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


def verdict(report: Report, claim: str, held: str, reasons: Sequence[str], doubt: str) -> str:
    """Return the banner of a report, and below it the reasons after the first.

    The verdict is on the `claim`, a noun phrase; `held` says why where nothing is wrong.
    """
    word: Verdict = report["verdict"]
    headline = f"No verdict on {claim}" if word == "void" else f"{word.capitalize()}: {claim}"
    first, *others = reasons or [held]
    shown = banner(TONES[word], headline, f"{first.rstrip('.')}.", doubt)
    # No line ends between a number and its unit.
    return "\n".join((re.sub(r"(?<=\d) (?=(%|/s|m?s)\W)", "\u00a0", shown), bullets(others)))


def marked(word: Verdict, numbers: Iterable[Row]) -> list[Row]:
    """Return figures for `tiles`, marked where the measurement is not valid."""
    mark = "not valid" if word == "void" else ""
    return [(name, value, ", ".join(filter(None, (mark, note)))) for name, value, note in numbers]


def doubts(report: Report, *more: str) -> str:
    """Return sentences about what a measurement on one machine cannot say, and then `more`."""
    cores = report["machine"]["cores"]
    shared = f"One run on one machine with {cores} cores, which the load generator shares with the service."
    return " ".join((shared, *more))


@dataclass(frozen=True)
class Findings:
    """Findings on one load, for the terminal and for the page; `notes` are sentences."""

    title: str
    word: Verdict
    lead: str
    rows: Sequence[Row]
    notes: Sequence[str]

    def __str__(self) -> str:
        """Return the findings as lines for a terminal."""
        lines = [f"{self.title}: {self.word}, {self.lead}"]
        lines += [f"  {name}: {', '.join(filter(None, values))}" for name, *values in self.rows]
        return "\n".join([*lines, *(f"  - {note}" for note in self.notes)])

    def body(self, banner: str, first: Sequence[str], plots: Mapping[str, str]) -> list[str]:
        """Return the parts of a page: banner, rows named in `first` as tiles, plots, all rows."""
        named = {name: (name, value, required) for name, value, required in self.rows}
        numbers = table([("", "measured", "compared with"), *self.rows])
        shown = marked(self.word, (named[name] for name in first))
        return [banner, tiles(shown), figures({**plots, "All numbers": paragraph(self.lead) + numbers})]


def row_line(cells: Mapping[str, str], reasons: Iterable[str]) -> str:
    """Return a row of a table as a line for a terminal, with the reasons below it.

    `cells` has the cells by the names of their columns. The line opens with the first cell.
    """
    first, *others = cells.items()
    line = f"  {first[1]}: {'; '.join(f'{name}: {value}' for name, value in others)}"
    return "\n".join([line, *(f"    - {reason}" for reason in reasons)])


def rows_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows, whose cells have the same names, as a table of a page."""
    return table([[*rows[0]], *([*row.values()] for row in rows)])


def indented(numbers: Mapping[str, Any]) -> list[Row]:
    """Return indented table rows of numbers by kind, for use below their sum."""
    return [(f"\u2003{kind}", f"{number:,}", "") for kind, number in numbers.items()]
