"""Commands `python -m training import NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Json, answer
from serve.contract.validation import duration_ms
from training.terminal import NewLog

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
    as_json: Json = False,
) -> None:
    """Convert a flat file, one row for each candidate shown, to a canonical log.

    Rows are one slate if they have the same --slate; by default, the same viewer and time; with
    --window, a viewer's rows within it. A column that has one value for each candidate becomes a
    field of candidates, else of viewers, else of the slate's context; others are left out.

    Ids are the text of a CSV: 007 is not 7. An empty field is missing; in columns without ids, NA,
    N/A, #N/A, NaN, nan, NULL, null and n/a are too.
    """
    from training.data.flat import FlatColumns, import_flat

    window_ms = 0.0 if window is None else duration_ms(window, "--window")
    columns = FlatColumns(candidate, time, tuple(event), viewer, slate, position, window_ms)
    found = import_flat(source, out, columns)
    size = found["mean_candidates"]
    lines = [
        f"{out}: {found['viewers']:,} viewers, {found['candidates']:,} candidates, "
        f"{found['events']:,} events ({', '.join(found['kinds'])})",
        f"{found['exposures']:,} slates of {size:.1f} candidates: {found['slates']}",
    ]
    if size < 1.5:
        lines.append("most slates have one candidate: if more were on screen, name --slate or --window")
    if repeated := found["repeated_rows"]:
        lines.append(f"{repeated:,} rows repeat a candidate of their slate, which is shown once")
    lines += [f"fields of {owner}: {', '.join(names)}" for owner, names in found["fields"].items() if names]
    if names := ", ".join(name or "(no name)" for name in found["left_out"]):
        lines.append(f"left out (empty, a name of the log, or no id of several rows determines it): {names}")
    answer(found, as_json, "\n".join(lines))
