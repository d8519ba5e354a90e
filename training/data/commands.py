"""Commands `python -m training import NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Json, answer
from serve.contract.validation import duration_ms
from training.terminal import NewLog

WRITTEN_LATER = (
    "drop a column that is written after the ranking: `surface` finds only what alone tells the outcome"
)

imports = typer.Typer(no_args_is_help=True, help="Convert other data to a canonical log.")


@imports.command()
def ranklens(
    source: Annotated[Path, typer.Option(help="The folder of the data set.")],
    out: NewLog,
    as_json: Json = False,
) -> None:
    """Convert the RankLens data set to a canonical log."""
    from training.data.ranklens import import_ranklens

    counts = import_ranklens(source, out)
    answer(counts, as_json, f"{out}: " + ", ".join(f"{n} {table}" for table, n in counts.items()))


@imports.command()
def csv(
    source: Annotated[Path, typer.Option(help="A CSV (.csv, .csv.gz) with a header, or a .parquet file.")],
    out: NewLog,
    candidate: Annotated[str, typer.Option(help="Column of the candidate that a row shows.")],
    time: Annotated[str, typer.Option(help="Column of the time: ISO 8601, or s, ms, µs or ns since 1970.")],
    event: Annotated[list[str], typer.Option(help="Column: 1, true or a name where a viewer acted; repeat.")],
    viewer: Annotated[str | None, typer.Option(help="Column of viewers; without it none is known.")] = None,
    slate: Annotated[str | None, typer.Option(help="Column whose value all rows of a slate share.")] = None,
    window: Annotated[str | None, typer.Option(help="Longest time of a viewer's slate, such as 30s.")] = None,
    position: Annotated[str | None, typer.Option(help="Column by which a slate is sorted.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Column of codes, which are no numbers; repeat.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="A file of the events, with columns of the same names and --event.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write also if under 95 % of --events join.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a flat file, one row for each candidate shown, to a canonical log.

    Rows are one slate if they have the same --slate; by default, the same viewer and time; with
    --window, a viewer's rows within it.

    Each other column is told what becomes of it. If it has one value for each candidate, it is a
    field of candidates; or of viewers, or of the slate's context. A value that changes with time
    gets its times. One that varies by viewer and candidate is stated by requests.

    Ids are the text of a CSV: 007 is not 7. An empty field is missing; in columns without ids, NA,
    N/A, #N/A, NaN, nan, NULL, null and n/a are too. Exit code 1, and nothing written, if fewer
    than 95 % of --events join a slate.

    A CSV cannot hold lists. For a set, such as a viewer's skills, give a .parquet file in which the
    column holds lists of strings.

    The file of --events has one row for each event: its own time, viewer and candidate, in columns
    that have the same names as in the source, and the columns of --event. With --slate, it has that
    column too.
    """
    from serve.report.rows import columns as aligned
    from training.data.flat import FlatColumns, import_flat

    window_ms = 0.0 if window is None else duration_ms(window, "--window")
    columns = FlatColumns(
        candidate, time, tuple(event), viewer, slate, position, window_ms, tuple(category or ())
    )
    found = import_flat(source, out, columns, events, is_sure=yes)
    lines = [
        f"{out}: {found['viewers']:,} viewers, {found['candidates']:,} candidates, "
        f"{found['events']:,} events ({', '.join(found['kinds'])})",
        f"{found['exposures']:,} slates of {found['mean_candidates']:.1f} candidates: {found['slates']}",
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
    answer(found, as_json, "\n".join(lines), held=found["joined"])
