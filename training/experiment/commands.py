"""The commands of `training experiment`: report and offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import CONFIG, Commands, Json, answer
from training.terminal import LogFolder, Model, ProgressLines, ReportFolder, print_progress

experiment = typer.Typer(cls=Commands, no_args_is_help=True)


@experiment.command("report")
def report(
    log: LogFolder,
    name: Annotated[str, typer.Option("--experiment", help="Name of the experiment.")],
    config: Annotated[Path, typer.Option(help="File that declares it, and names its surface.")] = CONFIG,
    arms: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="CONTROL TREATMENT", help="Arms to compare. Default: popular and the only other one."
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="FIELD", help="Show effects by a field's values.")] = None,
    out: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Compare two arms of an experiment by what their viewers did, and say which one won.

    The declaration in the log judges. The verdict is won, lost, no difference shown, or invalid; no
    verdict if the log has no declaration. Exit code 1: the experiment is invalid, so that its arms
    cannot be compared.
    """
    from serve.contract.errors import TabrankError
    from training.evaluation.what_if_page import write
    from training.experiment.declared import declared
    from training.experiment.page import page, text
    from training.experiment.report import report as run

    declaration, args = declared(config, name)
    if declaration.source is None:
        print_progress(f"{config} declares no experiment {name!r}: using the log alone, with defaults")
    if args is None:
        raise TabrankError(
            f"--config {config}: the metrics follow from the surface's outcomes, but it names no surface; add that "
            "which was served to the args of the application"
        )
    result = run(log, declaration, args.load_surface(config.parent), compare=arms, by=by)
    if out is not None:
        write(out, result, page(result))
    answer(result, as_json, text(result), held=result["verdict"] != "invalid")


@experiment.command("offline")
def offline(log: LogFolder, model: Model, as_json: Json = False) -> None:
    """Estimate how an artifact would rank, from rankings in a log whose order was drawn at random.

    An arm with `explore` in cluster.yaml draws such orders. The estimate counts the event of the
    surface's first outcome. The verdict is better, worse, or no difference shown, compared with the
    ranking by the served scores. The exit code is 0 for all three.

    The estimate assumes that the reward at a position is how often the position is looked at, times
    the attraction of the candidate there.
    """
    from training.experiment.offline import estimate

    result = estimate.offline(log, model, progress=ProgressLines("offline"))
    answer(result, as_json, estimate.text(result))
