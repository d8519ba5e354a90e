"""`python -m training experiment`: what an experiment came to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.commands import Commands
from training.terminal import Json, LogFolder, answer, say

experiment = typer.Typer(cls=Commands, no_args_is_help=True)
Config = Annotated[Path, typer.Option(help="The file that declares the experiment.")]


@experiment.command("report")
def report(
    log: LogFolder,
    name: Annotated[str, typer.Option("--experiment", help="The experiment's name.")],
    config: Config = Path("cluster.yaml"),
    timezone: Annotated[str, typer.Option(help="Whose midnights part the days.")] = "UTC",
    control: Annotated[
        str | None, typer.Option(help="The arm to compare with; default the popular one.")
    ] = None,
    treatment: Annotated[
        str | None, typer.Option(help="The other arm; needed where there are several.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for report.json and report.html; must not exist.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The verdict of an experiment from a served log: won, lost, no difference shown or, with exit code 1, invalid."""
    from serve.log import refuse_existing
    from training.experiment.declared import declared
    from training.experiment.page import text
    from training.experiment.report import report as run
    from training.experiment.report import write_report

    if out is not None:
        refuse_existing(out)
    declaration = declared(config, name)
    if declaration.source is None:
        say(f"{config} declares no experiment {name!r}: taken from the log alone, with defaults")
    result = run(log, declaration, timezone=timezone, control=control, treatment=treatment)
    if out is not None:
        write_report(out, result)
    answer(result, as_json, text(result))
    if result["verdict"] == "invalid":
        raise typer.Exit(1)


@experiment.command("validate")
def validate(
    runs: Annotated[int, typer.Option(min=50, help="Simulated experiments for each check.")] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same viewers.")] = 0,
    as_json: Json = False,
) -> None:
    """Whether the statistics keep what they promise, on simulated viewers; 1 where one does not."""
    from training.experiment.validation import table
    from training.experiment.validation import validate as run

    result = run(runs, seed=seed, progress=say)
    answer(result, as_json, table(result))
    if not result["held"]:
        raise typer.Exit(1)
