"""Commands of `python -m training bench`: speed on this machine, quality on data of known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Json, answer
from training.terminal import ProgressBar, artifact_of, print_progress

bench = typer.Typer(no_args_is_help=True)


@bench.command("scorer")
def scorer(
    model: Annotated[
        Path | None, typer.Option(help="An artifact. Default: networks of 40 features, random weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of torch: cpu, or cuda for a GPU.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure candidates/s on one core: pytorch_tabnet, eager and exported network, and ours.

    With --device cuda, torch scores on the GPU, and ONNX Runtime still on one core.
    """
    from training.bench.scorer import bench_scorer, table

    result = bench_scorer(model, device=device, progress=print_progress)
    answer(result, as_json, table(result))


@bench.command("fit")
def fit(as_json: Json = False) -> None:
    """Measure training rows/s: pytorch_tabnet's classifier, a plain loop, and ours."""
    from training.bench.fit import bench_fit, table

    result = bench_fit(progress=print_progress)
    answer(result, as_json, table(result))


@bench.command("syn")
def syn(
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of row sets and weights over which the AUC is averaged.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train on the TabNet paper's synthetic sets.

    Exit code 1 if an AUC is more than 0.01 below the paper's.
    """
    from training.bench.syn import bench_syn, table

    result = bench_syn(seeds=range(seeds), progress=print_progress)
    answer(result, as_json, table(result), held=result["held"])


@bench.command("world")
def world(
    model: Annotated[
        Path, typer.Option(callback=artifact_of, help="An artifact of `spaces`, or the folder of a search.")
    ],
    world: Annotated[Path, typer.Option(help="The whole simulated log, with its truth.parquet.")],
    history: Annotated[Path, typer.Option(help="The part that the model was trained on, as split wrote it.")],
    log: Annotated[Path, typer.Option(help="The other part, to measure on.")],
    as_json: Json = False,
) -> None:
    """Measure the share of the gap between popular and the oracle that a model closes.

    The gap is in true label events per exposure; exit code 1 below 65 %. The oracle scores with the
    true probabilities of the simulated world.
    """
    from training.bench.world import bench_world, table

    with ProgressBar("bench world") as progress:
        result = bench_world(model, world, history, log, progress=progress)
    answer(result, as_json, table(result), held=result["held"])
