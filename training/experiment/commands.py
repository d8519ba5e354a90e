"""`python -m training experiment`: what an experiment showed, and what one may expect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.commands import Commands
from training.terminal import Json, LogFolder, Model, Share, answer, artifact_of

experiment = typer.Typer(cls=Commands, no_args_is_help=True)


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
    from training.experiment.offline import offline as run
    from training.experiment.offline import text

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
    from training.experiment.offline_check import check, text

    with Share("offline-check") as progress:
        result = check(runs, obp, progress=progress)
    answer(result, as_json, text(result))
    if not result["held"]:
        raise typer.Exit(1)
