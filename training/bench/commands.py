"""`python -m training bench`: what training and scoring cost on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from training.terminal import Json, Share, answer, artifact_of, say

bench = typer.Typer(no_args_is_help=True)


@bench.command("scorer")
def scorer(
    model: Annotated[
        Path | None, typer.Option(help="An artifact; default two networks of 40 features, random weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Candidates a second on one core: pytorch_tabnet, the network in eager mode and exported, and ours."""
    from training.bench.scorer import bench_scorer, table

    result = bench_scorer(model, progress=say)
    answer(result, as_json, table(result))


@bench.command("fit")
def fit(as_json: Json = False) -> None:
    """Rows a second in training: pytorch_tabnet's classifier, a plain loop around its network, and ours."""
    from training.bench.fit import bench_fit, table

    result = bench_fit(progress=say)
    answer(result, as_json, table(result))


@bench.command("syn")
def syn(
    seeds: Annotated[
        int, typer.Option(min=1, help="Sets of rows and weights, over which the AUC is a mean.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """The TabNet paper's synthetic sets: exit code 1 where an AUC is more than 0.01 below the paper's."""
    from training.bench.syn import bench_syn, table

    result = bench_syn(seeds=range(seeds), progress=say)
    answer(result, as_json, table(result))
    if not result["held"]:
        sys.exit(1)


@bench.command("world")
def world(
    model: Annotated[Path, typer.Option(help="An artifact of `spaces`, or the folder of a search.")],
    world: Annotated[Path, typer.Option(help="The simulated log, whole, with its truth.parquet.")],
    history: Annotated[Path, typer.Option(help="Its part that the model was trained on, as split wrote it.")],
    log: Annotated[Path, typer.Option(help="Its other part, to measure on.")],
    as_json: Json = False,
) -> None:
    """How far a model comes from popular to the simulated world's own law: exit code 1 below 80 % of the way."""
    from training.bench.world import bench_world, table

    with Share("bench world") as progress:
        result = bench_world(artifact_of(model), world, history, log, progress=progress)
    answer(result, as_json, table(result))
    if not result["held"]:
        sys.exit(1)
