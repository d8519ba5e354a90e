"""`python -m training experiment`: what an experiment came to, and what one may expect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Commands
from training.terminal import Json, LogFolder, Model, Share, answer, artifact_of, say

experiment = typer.Typer(cls=Commands, no_args_is_help=True)
CONFIG = Path("cluster.yaml")


@experiment.command("report")
def report(
    log: LogFolder,
    name: Annotated[str, typer.Option("--experiment", help="The experiment's name.")],
    config: Annotated[
        Path | None,
        typer.Option(help="The file that declares the experiment; default cluster.yaml, where there is one."),
    ] = None,
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
    from serve.contract.validation import refuse_existing
    from training.experiment.declared import Declared, declared
    from training.experiment.page import text
    from training.experiment.report import report as run
    from training.experiment.report import write_report

    if out is not None:
        refuse_existing(out)
    at = config or CONFIG
    is_there = config is not None or at.is_file()
    declaration = declared(at, name) if is_there else Declared(name)
    if declaration.source is None:
        why = f"{at} declares no experiment {name!r}" if is_there else f"there is no {at} here"
        say(f"{why}: taken from the log alone, with defaults")
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


@experiment.command("offline")
def offline(
    log: LogFolder,
    model: Model,
    event: Annotated[
        str | None, typer.Option(help="What is to be earned; default the event of the label.")
    ] = None,
    positions: Annotated[
        int | None, typer.Option(help="Count what is earned at the first so many places; default all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What an artifact would have earned, from the exposures of a served log whose order was drawn.

    It says better, worse, or no difference shown, against the ranking by the scores that were served; all three exit
    with 0. An exposure is taken to earn, at each place, the chance that the place is looked at times what the candidate
    there is worth to the viewer.
    """
    from training.experiment.offline.estimate import offline as run
    from training.experiment.offline.estimate import text

    with Share("offline") as progress:
        result = run(log, artifact_of(model), event=event, positions=positions, progress=progress)
    answer(result, as_json, text(result))


@experiment.command("offline-check")
def offline_check(
    runs: Annotated[int, typer.Option(min=1, help="Simulated logs.")] = 1_000,
    obp: Annotated[
        Path | None,
        typer.Option(help="The Open Bandit Dataset: the wheel of obp 0.4.1, or a folder it is unpacked in."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hold the offline estimates against simulated worlds whose truth is known, and real logs; 1 where they fail.

    `pip download obp==0.4.1 --no-deps` gets the wheel with a small part of the Open Bandit Dataset.
    """
    from training.experiment.offline.check import check, text

    with Share("offline-check") as progress:
        result = check(runs, obp, progress=progress)
    answer(result, as_json, text(result))
    if not result["held"]:
        raise typer.Exit(1)


@experiment.command("simulate")
def simulate(
    log: Annotated[
        Path,
        typer.Option(help="The days before: a log that `simulate` wrote, from which the store was filled."),
    ],
    days: Annotated[float, typer.Option(help="So many days more.")] = 7.0,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    rankings: Annotated[int, typer.Option(help="How often its viewers come in these days.")] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same days to come.")] = 0,
    model: Annotated[
        Path | None,
        typer.Option(help="The artifact that is served: simulate each arm alone as well, in this process."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for truth.json and truth.parquet; must not exist.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a simulated world go on, its viewers ranked by the running service; 1 where a ranking was not full.

    The service needs `clock: event` in the args of its cluster.yaml, two arms, a store filled from the log, and no
    other traffic. It writes the log that `experiment report` reads; the true effect is told here, for comparison.
    """
    from training.experiment.rerun.simulate import simulate as run
    from training.experiment.rerun.truth import table

    result = run(
        log,
        url,
        days=days,
        rankings=rankings,
        seed=seed,
        model=None if model is None else artifact_of(model),
        out=out,
        progress=Share,
    )
    lines = [
        f"{result['rankings']} rankings in {result['seconds']:.1f} s, {result['rankings_per_s']:.0f} a second; "
        f"{result['events']} events; " + ", ".join(f"{n} of {arm}" for arm, n in result["exposures"].items()),
        table(result),
        "held" if result["held"] else f"NOT held: {result['not_full']} rankings were not full",
    ]
    answer(result, as_json, "\n".join(lines))
    if not result["held"]:
        raise typer.Exit(1)
