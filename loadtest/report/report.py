"""What each report says, and its folder: report.json, report.html and more files."""

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
from serve.report.page import Tone, banner, bullets, footer, paragraph, section, table, tiles, whole_page
from serve.storage.atomic_files import draft_of, write_whole

Report = dict[str, Any]
Row = tuple[str, str, str]
"""Name of a number, its measured value, and what is required."""
TONES: Mapping[Verdict, Tone] = {"held": "good", "not held": "bad", "void": "unsure"}
# Ends each page, before what is special about its scenario.
OPEN_LOOP = (
    ". Open loop: requests are sent at random times (Poisson arrivals) and wait for no answer. Latency counts from "
    "when a request is due. "
)


@dataclass(frozen=True)
class Findings:
    """Findings of a scenario, for the terminal and for the page.

    Attributes:
        title: title of the page.
        word: verdict on the claim.
        claim: what the verdict is on, a noun phrase.
        held: reason of the verdict where nothing is wrong.
        doubt: sentences on what the report cannot say.
        lead: what was measured, such as how long and where.
        rows: numbers of the whole.
        notes: sentences; the first is the reason of the verdict.
        first: names of the rows on the first screen; all if it is empty.
        records: numbers of each part, by the names of their columns. The first names the part.
    """

    title: str
    word: Verdict
    claim: str
    held: str
    doubt: str
    lead: str
    rows: Sequence[Row]
    notes: Sequence[str]
    first: Sequence[str] = ()
    records: Sequence[Mapping[str, str]] = ()

    def __str__(self) -> str:
        """Return the findings as lines for a terminal."""
        lines = [f"{self.title}: {self.word}, {self.lead}"]
        lines += [f"  {name}: {', '.join(filter(None, values))}" for name, *values in self.rows]
        lines += map(record_line, self.records)
        return "\n".join([*lines, *(f"  - {note}" for note in self.notes)])

    def parts(self, pictures: Iterable[str]) -> list[str]:
        """Return the parts of the page: verdict, first numbers, pictures, all numbers."""
        void = self.word == "void"
        headline = f"No verdict on {self.claim}" if void else f"{self.word.capitalize()}: {self.claim}"
        reason, *others = self.notes or [self.held]
        shown = banner(TONES[self.word], headline, f"{reason.rstrip('.')}.", self.doubt)
        mark = "not valid" if void else ""
        first = [row for row in self.rows if row[0] in self.first] or self.rows
        rest = self.rows if len(first) < len(self.rows) else []
        return [
            # No line ends between a number and its unit.
            re.sub(r"(?<=\d) (?=(%|/s|m?s)\W)", "\u00a0", shown),
            bullets(others),
            tiles((name, value, ", ".join(filter(None, (mark, note)))) for name, value, note in first),
            paragraph(f"{self.lead}."),
            table(
                [[*self.records[0]], *([*record.values()] for record in self.records)] if self.records else []
            ),
            *pictures,
            section("All numbers", table([("", "measured", "compared with"), *rest])),
        ]


def write_report(
    folder: Path,
    report: Report,
    found: Findings,
    parts: Iterable[str],
    how: str = "",
    more: Mapping[str, str] = MappingProxyType({}),
    *,
    new: bool = True,
) -> None:
    """Write report.json, report.html and the files in `more` to a new folder, or an existing one.

    A new folder is complete or not there at all. `parts` are HTML, such as pictures; `how` is text.
    The page ends with the machine, how it was measured, and links to the files.

    Raises:
        TabrankError: if a new `folder` exists.
    """
    files = {"report.json": json.dumps(report, indent=2) + "\n", **more}
    page = whole_page(found.title, [*found.parts(parts), footer(report["machine"], OPEN_LOOP + how, files)])
    with draft_of(folder) if new else nullcontext(folder) as target:
        for name, text in {**files, "report.html": page}.items():
            write_whole(target / name, text.encode())


def doubts(report: Report, *more: str) -> str:
    """Return sentences about what a measurement on one machine cannot say, and then `more`."""
    cores = report["machine"]["cores"]
    shared = f"One run on one machine with {cores} cores, which the load generator shares with the service."
    return " ".join((shared, *more))


def record_line(record: Mapping[str, str]) -> str:
    """Return a record as a line for a terminal, which opens with its first cell."""
    (_, first), *others = record.items()
    return f"  {first}: {'; '.join(f'{name}: {value}' for name, value in others)}"


def reasons_of(parts: Mapping[str, Report]) -> list[str]:
    """Return the reasons of all parts, each after the name of its part."""
    return [f"{name}: {reason}" for name, part in parts.items() for reason in part["reasons"]]


def indented(numbers: Mapping[str, Any]) -> list[Row]:
    """Return indented table rows of numbers by kind, for use below their sum."""
    return [(f"\u2003{kind}", f"{number:,}", "") for kind, number in numbers.items()]
