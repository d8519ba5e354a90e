"""The commands `python -m training import NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.errors import TabrankError
from serve.contract.validation import duration_ms, one_of
from training.terminal import NewLog

WRITTEN_LATER = (
    "drop every column that was written after the ranking: `surface` finds only the most obvious ones"
)

# Whose field a column may be, and the ids of which it then is a field.
OWNERS = {"viewer": "viewer", "candidate": "candidate", "context": "request_id"}

imports = typer.Typer(no_args_is_help=True, help="Convert other data to a log.")


@imports.command()
def ranklens(
    source: Annotated[Path, typer.Option(help="The folder of the data set.")],
    out: NewLog,
) -> None:
    """Convert the RankLens data set to a log."""
    from training.data.ranklens import import_ranklens

    counts = import_ranklens(source, out)
    print(f"{out}: " + ", ".join(f"{n} {table}" for table, n in counts.items()))


@imports.command()
def csv(
    source: Annotated[Path, typer.Option(help="A CSV (.csv, .csv.gz) with a header, or a .parquet file.")],
    out: NewLog,
    candidate: Annotated[str, typer.Option(help="Column with the id of the shown candidate.")],
    time: Annotated[str, typer.Option(help="Column of the time: ISO 8601, or s, ms, µs or ns since 1970.")],
    event: Annotated[list[str], typer.Option(help="Column that is 1, true or the event's name. Repeatable.")],
    viewer: Annotated[str | None, typer.Option(help="Column of viewers. Default: nobody is known.")] = None,
    slate: Annotated[str | None, typer.Option(help="Column whose value all rows of a slate share.")] = None,
    window: Annotated[str | None, typer.Option(help="Longest time span of a slate, such as 30s.")] = None,
    position: Annotated[str | None, typer.Option(help="Column by which to sort a slate's rows.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Column of numbers that are codes, such as 17. Repeatable.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Another file that holds the events, in columns of the same names.")
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option(help="Kind of event and the column of its amount: buy=paid. Repeatable."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            help="Column and whose field it is: age=viewer, or =candidate, or =context. Repeatable."
        ),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Such as cp1252. Default: UTF-8, or UTF-16.")] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Separator of columns. Default: by the header.")
    ] = None,
    decimal: Annotated[str | None, typer.Option(help="Decimal mark, . or , Default: by each column.")] = None,
    time_format: Annotated[str | None, typer.Option(help="Format of the time: '%d.%m.%Y %H:%M'.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write even if many events have no slate.")] = False,
) -> None:
    """Convert a flat file, which has one row for each candidate that was shown, to a log.

    A slate is one list as a viewer saw it. Rows with the same value of --slate are one slate. By
    default, a slate is the rows of the same viewer and time. With --window, it is the rows of a
    viewer within that time of the slate's first row.

    --event takes 1, true, yes or the kind of event. --value takes an amount, such as what was paid.

    Every other column becomes a field, and the command prints which and why. A column with one
    value per candidate becomes a field of candidates, and likewise for viewers and for slates
    (their context). If a value changes with time, each value is written with the time from which it
    is valid. If a value varies by viewer and candidate, each request states it. --field overrules
    this.

    Amounts such as "1.234,50 €" are read as numbers if a column leaves no doubt; else a warning
    asks. Times without a zone are read as UTC.

    Ids are the text that a CSV holds, so 007 and 7 are two ids. An empty cell is a missing value.
    In columns without ids, NA, N/A, #N/A, NaN, nan, NULL, null and n/a are missing values too.

    If fewer than 95 % of the rows of --events belong to a slate, nothing is written and the exit
    code is 1; --yes writes the log all the same.

    A CSV cannot hold lists. For a set, such as a viewer's skills, give a .parquet file in which the
    column holds lists of strings.

    The file of --events has one row for each event: its own time, viewer and candidate, in columns
    that have the same names as in the source, and the columns of --event and --value. With --slate,
    it has that column too. How a file is written (--encoding, --delimiter, --decimal,
    --time-format) holds for both.
    """
    from serve.report.rows import columns as aligned
    from training.data.csv_text import Dialect
    from training.data.flat import import_flat
    from training.data.flat_file import FlatColumns

    owners = _pairs("--field", field, "a column and its owner, such as age=viewer")
    columns = FlatColumns(
        candidate,
        time,
        tuple(event),
        viewer,
        slate,
        position,
        0.0 if window is None else duration_ms(window, "--window"),
        tuple(category or ()),
        amounts=_pairs("--value", value, "a kind of event and its column, such as buy=paid"),
        owners={name: OWNERS[one_of(owner, OWNERS, f"--field {name}")] for name, owner in owners.items()},
        dialect=Dialect(encoding, delimiter, decimal, time_format),
    )
    found = import_flat(source, out, columns, events, is_sure=yes)
    lines = [
        f"{out}: {found['viewers']:,} viewers, {found['candidates']:,} candidates, "
        f"{found['events']:,} events ({', '.join(found['kinds'])})",
        f"{found['exposures']:,} slates of {found['mean_candidates']:.1f} candidates: {found['slates']}",
        f"the slates are from {found['from']} to {found['to']}, in UTC",
    ]
    if repeated := found["repeated_rows"]:
        lines.append(
            f"{repeated:,} rows repeat a candidate of their slate, which is shown once; "
            f"{found['merged_events']:,} of their events repeat another and count once"
        )
    if found["columns"]:
        table = [("column", "becomes", "differs", "why")]
        for one in found["columns"]:
            differs = "" if one["disagreement"] is None else f"{one['disagreement']:.1%}"
            table.append((one["column"] or "(no name)", one["owner"] or "left out", differs, one["why"]))
        lines += [aligned(table), WRITTEN_LATER]
    lines += found["warnings"]
    if not found["joined"]:
        lines.append("nothing was written: correct ids and times, or repeat with --yes")
    print("\n".join(lines))
    if not found["joined"]:
        raise typer.Exit(1)


def _pairs(option: str, given: list[str] | None, what: str) -> dict[str, str]:
    """Return the pairs NAME=VALUE that an option was given, by their names."""
    pairs: dict[str, str] = {}
    for one in given or ():
        name, _, value = one.rpartition("=")
        if not (name and value):
            raise TabrankError(f"{option} {one}: write {what}")
        if name in pairs:
            raise TabrankError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs
