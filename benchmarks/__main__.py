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
    print(table(result))
    if not result["held"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
