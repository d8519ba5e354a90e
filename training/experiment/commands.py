"""`python -m training experiment`: what an experiment did, and the original one, rerun in the simulated world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.commands import Commands
from training.terminal import Json, Share, answer, artifact_of

experiment = typer.Typer(cls=Commands, no_args_is_help=True)


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
    from training.experiment.simulate import simulate as run
    from training.experiment.truth import table

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
