"""`python -m benchmarks`: compare tabrank with the truth of a simulated world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import command_line
from training.terminal import ProgressLines

app = command_line(__doc__)


@app.command()
def world(
    rows: Annotated[int, typer.Option(min=30_000, help="Shown candidates in each world.")] = 150_000,
) -> None:
    """Fit a model in five worlds, and compare what its evaluation says with the truth.

    Four of the worlds break an assumption of the methods. Each world takes about a minute.
    """
    from benchmarks.world import table, worlds

    print(table(worlds(rows)))


@app.command()
def live(
    rows: Annotated[int, typer.Option(min=30_000, help="Shown candidates in each world.")] = 360_000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of worlds.")] = 3,
) -> None:
    """Measure what hosts, friends, guests and memory tell about rooms that have just begun.

    In each world, seven models are fitted, which takes about a minute each. Exit code 1: for young
    rooms, these features of `spaces` together gain no more than two standard errors.
    """
    from benchmarks.live import live, table

    result = live(rows, seeds)
    end(table(result), held=result["held"])


@app.command()
def rerun(
    log: Annotated[Path, typer.Option(help="A log of `training simulate`, with which the store was filled.")],
    out: Annotated[Path, typer.Option(help="New folder for truth.json.")],
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8010",
) -> None:
    """Continue a simulated world for a week, and print the true effect of the service's model.

    The week has 50,000 visits. `make experiment` calls this. The service must run with
    benchmarks/rerun/cluster.yaml, a store filled from the log, and no other traffic. It writes the
    log that `training experiment report` reads. Exit code 1: a ranking was not answered in full by
    the model.
    """
    from benchmarks.rerun.simulate import simulate, table

    result = simulate(log, url, out, progress=ProgressLines("rerun"))
    end(table(result), held=result["held"])


@app.command()
def memory(
    out: Annotated[Path, typer.Option(help="Folder for logs, models and searches. Logs stay there.")],
    rows: Annotated[list[int] | None, typer.Option(min=30_000, help="Rows of a log. Repeatable.")] = None,
) -> None:
    """Measure how many seconds and how much memory the training commands take, by a log's rows.

    The default is 1, 3 and 10 million rows, which takes two hours on two cores and 12 GB of disk.
    Exit code 1: a command failed.
    """
    from benchmarks.memory import memory as run
    from benchmarks.memory import table

    lines = run(rows or [1_000_000, 3_000_000, 10_000_000], out)
    end(table(lines), held=not any(line["failed"] for line in lines))


def end(text: str, *, held: bool) -> None:
    """Print a result, and exit with 1 if it is not `held`."""
    print(text)
    if not held:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
