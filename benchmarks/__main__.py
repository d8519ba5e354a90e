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
    rows: Annotated[int, typer.Option(min=30_000, help="Shown candidates in each world.")] = 150_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the worlds and the models.")] = 0,
    as_json: Json = False,
) -> None:
    """Fit a model in five worlds, and compare what its evaluation says with the truth.

    Four of the worlds break an assumption of the methods. Each world takes about a minute.
    """
    from benchmarks.world import table, worlds

    result = worlds(rows, seed)
    answer(result, as_json, table(result))


@app.command()
def live(
    rows: Annotated[int, typer.Option(min=30_000, help="Shown candidates in each world.")] = 360_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure what hosts, friends, guests and memory tell about rooms that have just begun.

    In each world, seven models are fitted, which takes about a minute each. Exit code 1: for young
    rooms, these features of `spaces` together gain no more than two standard errors.
    """
    from benchmarks.live import live, table

    result = live(rows, seeds)
    answer(result, as_json, table(result), held=result["held"])


@app.command()
def outcomes(
    rows: Annotated[int, typer.Option(min=30_000, help="Shown candidates in each world.")] = 360_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 3,
    as_json: Json = False,
) -> None:
    """Compare a network that predicts joins, stays and hides with networks of one outcome each.

    Also shows what weights do to the order. In each world, four models are fitted, which takes
    about a minute each.
    """
    from benchmarks.outcomes import outcomes, table

    result = outcomes(rows, seeds)
    answer(result, as_json, table(result))


@app.command()
def rerun(
    log: Annotated[Path, typer.Option(help="A log of `training simulate`, with which the store was filled.")],
    out: Annotated[Path, typer.Option(help="New folder for truth.json.")],
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8010",
    days: Annotated[float, typer.Option(min=0.01, max=365, help="Days to simulate.")] = 7.0,
    rankings: Annotated[int, typer.Option(min=50, help="Number of visits in these days.")] = 50_000,
    as_json: Json = False,
) -> None:
    """Continue a simulated world with a running service, and print the true effect of its model.

    `make experiment` calls this. The service must run with benchmarks/rerun/cluster.yaml, a store
    filled from the log, and no other traffic. It writes the log that `training experiment report`
    reads. Exit code 1: a ranking was not answered in full by the model.
    """
    from benchmarks.rerun.simulate import simulate, table

    result = simulate(log, url, out, days=days, rankings=rankings, progress=ProgressLines("rerun"))
    answer(result, as_json, table(result), held=result["held"])


@app.command()
def memory(
    out: Annotated[Path, typer.Option(help="Folder for logs, models and searches. Logs stay there.")],
    rows: Annotated[list[int] | None, typer.Option(min=30_000, help="Rows of a log. Repeatable.")] = None,
    command: Annotated[
        list[str] | None, typer.Option(help="fit, evaluate, search or refresh. Repeatable. Default: all.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of `fit`.")] = 1,
    budget: Annotated[str, typer.Option(help="Budget of `search` and of `refresh`.")] = "10m",
    as_json: Json = False,
) -> None:
    """Measure how many seconds and how much memory the training commands take, by a log's rows.

    The default is 1, 3 and 10 million rows, which takes two hours on two cores and 12 GB of disk.
    Exit code 1: a command failed.
    """
    from benchmarks.memory import IMPORTS, table
    from benchmarks.memory import memory as run

    result = run(rows or [1_000_000, 3_000_000, 10_000_000], out, command or [*IMPORTS], epochs, budget)
    answer(result, as_json, table(result), held=not result["failed"])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
