"""Commands of `python -m training bench`: the speed of scoring on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from serve.contract.commands import Json, answer
from training.terminal import Model

bench = typer.Typer(no_args_is_help=True)


@bench.command("scorer")
def scorer(
    model: Model,
    device: Annotated[str, typer.Option(help="Device of torch: cpu, or cuda for a GPU.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure an artifact's candidates/s on one core, with ONNX Runtime and with torch.

    With --device cuda, torch scores on the GPU, and ONNX Runtime still on one core.
    """
    from training.bench.scorer import bench_scorer, table

    result = bench_scorer(model, device=device)
    answer(result, as_json, table(result))
