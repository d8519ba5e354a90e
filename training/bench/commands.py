"""The commands of `python -m training bench`, which measure the speed of scoring."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.contract.commands import Json, answer
from training.terminal import Model

bench = typer.Typer(no_args_is_help=True)


@bench.command("scorer")
def scorer(
    model: Model,
    device: Annotated[str, typer.Option(help="Where torch scores: cpu, or cuda for a GPU.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure how many candidates an artifact scores per second, with ONNX Runtime and with torch.

    Both use one core. With --device cuda, torch scores on the GPU instead.
    """
    from training.bench.scorer import bench_scorer, table

    result = bench_scorer(model, device=device)
    answer(result, as_json, table(result))
