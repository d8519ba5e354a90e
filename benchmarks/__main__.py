"""`python -m benchmarks`: compare tabrank with the truth of a simulated world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Json, answer, command_line
from training.terminal import ProgressLines

app = command_line(__doc__)


@app.command()
def world(
    rows: Annotated[int, typer.Option(min=30_000, help="Exposed candidates of each world.")] = 150_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of worlds and models.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a model in five worlds, and compare what is said of it with the truth.

    Four of them break an assumption. Takes about a minute a world.
    """
    from benchmarks.world import table, worlds

    result = worlds(rows, seed)
    answer(result, as_json, table(result))


@app.command()
def live(
    rows: Annotated[int, typer.Option(min=30_000, help="Exposed candidates of each world.")] = 360_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure what hosts, friends, guests and memory tell about rooms that have just begun.

    Fits seven models in each world, about a minute each. Exit code 1 if these features of `spaces`
    together gain no more than two standard errors there.
    """
    from benchmarks.live import live, table

    result = live(rows, seeds)
    answer(result, as_json, table(result), held=result["held"])


@app.command()
def outcomes(
    rows: Annotated[int, typer.Option(min=30_000, help="Exposed candidates of each world.")] = 360_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare one network of joins, stays and hides with networks of one, and see what weights do.

    Fits four models in each world, about a minute each.
    """
    from benchmarks.outcomes import outcomes, table

    result = outcomes(rows, seeds)
    answer(result, as_json, table(result))


@app.command()
def rerun(
    log: Annotated[Path, typer.Option(help="Log that `training simulate` wrote and that filled the store.")],
    out: Annotated[Path, typer.Option(help="New folder for truth.json.")],
    url: Annotated[str, typer.Option(help="URL of the service.")] = "http://127.0.0.1:8010",
    days: Annotated[float, typer.Option(min=0.01, max=365, help="Days to simulate.")] = 7.0,
    rankings: Annotated[int, typer.Option(min=50, help="Number of visits in these days.")] = 50_000,
    as_json: Json = False,
) -> None:
    """Continue a simulated world with a running service, and print the true effect of its model.

    `make experiment` calls it. The service runs with benchmarks/rerun/cluster.yaml, a store filled
    from the log, and no other traffic. It writes the log that `training experiment report` reads.
    Exit code 1 if a ranking was not full.
    """
    from benchmarks.rerun.simulate import simulate, table

    result = simulate(log, url, out, days=days, rankings=rankings, progress=ProgressLines("rerun"))
    answer(result, as_json, table(result), held=result["held"])


@app.command()
def memory(
    out: Annotated[Path, typer.Option(help="Folder of the logs, models and searches; keeps the logs.")],
    rows: Annotated[list[int] | None, typer.Option(min=30_000, help="Rows of a log; repeat.")] = None,
    command: Annotated[
        list[str] | None, typer.Option(help="fit, evaluate, search or refresh; repeat. Default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fit.")] = 1,
    budget: Annotated[str, typer.Option(help="Budget of search and refresh.")] = "10m",
    as_json: Json = False,
) -> None:
    """Measure seconds and peak memory of the commands of training, by the rows of a log.

    By default on 1, 3 and 10 million rows, which takes two hours on two cores and 12 GB of disk.
    Exit code 1 if a command failed.
    """
    from benchmarks.memory import IMPORTS, table
    from benchmarks.memory import memory as run

    result = run(rows or [1_000_000, 3_000_000, 10_000_000], out, command or [*IMPORTS], epochs, budget)
    answer(result, as_json, table(result), held=not result["failed"])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
