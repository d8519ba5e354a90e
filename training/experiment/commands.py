"""The commands of `training experiment`: report and offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import CONFIG, Commands, Json, answer
from training.terminal import LogFolder, Model, ProgressLines, print_progress

experiment = typer.Typer(cls=Commands, no_args_is_help=True)


@experiment.command("report")
def report(
    log: LogFolder,
    name: Annotated[str, typer.Option("--experiment", help="Name of the experiment.")],
    config: Annotated[Path | None, typer.Option(help="File that declares it; default cluster.yaml.")] = None,
    surface: Annotated[str | None, typer.Option(help="Surface of the log; default: the file's.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone in which days begin.")] = "UTC",
    control: Annotated[str | None, typer.Option(help="Arm to compare with; default: popular.")] = None,
    treatment: Annotated[str | None, typer.Option(help="Arm to judge; needed if there are several.")] = None,
    until: Annotated[str | None, typer.Option(help="Ignore exposures from this ISO 8601 time on.")] = None,
    by: Annotated[str | None, typer.Option(metavar="FIELD", help="Show effects by a field's values.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two arms of an experiment by what their viewers did, and say which one won.

    The declaration in the log judges. The verdict is won, lost, no difference shown, or invalid; no
    verdict if the log has no declaration. Exit code 1: the experiment is invalid, so that its arms
    cannot be compared.
    """
    from serve.contract.errors import TabrankError
    from serve.contract.validation import milliseconds, refuse_existing
    from serve.features.surface import load_surface
    from training.evaluation.sweep_page import write
    from training.experiment.declared import Declared, declared
    from training.experiment.page import page, text
    from training.experiment.report import report as run

    if out is not None:
        refuse_existing(out)
    until_ms = None if until is None else milliseconds(until, "--until")
    at = config or CONFIG
    is_there = config is not None or at.is_file()
    declaration, of_file = declared(at, name) if is_there else (Declared(name), None)
    if declaration.source is None:
        why = f"{at} declares no experiment {name!r}" if is_there else f"{at} does not exist"
        print_progress(f"{why}: using the log alone, with defaults")
    if surface is not None:
        of_log = load_surface(surface)
    elif of_file is not None:
        of_log = of_file.load_surface(at.parent)
    else:
        raise TabrankError(
            f"--surface: the metrics follow from the surface's outcomes, but {at} names no surface; give the one "
            "that was served, such as --surface spaces or --surface surface.toml"
        )
    arms = {"control": control, "treatment": treatment}
    result = run(log, declaration, of_log, timezone=timezone, until_ms=until_ms, by=by, **arms)
    if out is not None:
        write(out, result, page(result))
    answer(result, as_json, text(result), held=result["verdict"] != "invalid")


@experiment.command("offline")
def offline(
    log: LogFolder,
    model: Model,
    event: Annotated[
        str | None, typer.Option(help="Event to count as reward; default: the first outcome's.")
    ] = None,
    positions: Annotated[int | None, typer.Option(min=1, help="First positions to count.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate how an artifact would rank, from rankings in a log whose order was drawn at random.

    An arm with `explore` in cluster.yaml draws such orders. The verdict is better, worse, or no
    difference shown, compared with the ranking by the served scores. The exit code is 0 for all
    three.

    The estimate assumes that the reward at a position is how often the position is looked at, times
    the attraction of the candidate there.
    """
    from training.experiment.offline import estimate

    progress = ProgressLines("offline")
    result = estimate.offline(log, model, event=event, positions=positions, progress=progress)
    answer(result, as_json, estimate.text(result))
