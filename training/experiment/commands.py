"""Commands of `training experiment`: report and offline."""

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
    name: Annotated[str, typer.Option("--experiment", help="The experiment's name.")],
    config: Annotated[Path | None, typer.Option(help="File that declares it; default cluster.yaml.")] = None,
    surface: Annotated[str | None, typer.Option(help="Surface of the log; default that of the file.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the days.")] = "UTC",
    control: Annotated[str | None, typer.Option(help="Arm to compare with; default the popular one.")] = None,
    treatment: Annotated[str | None, typer.Option(help="Arm to evaluate; needed if several remain.")] = None,
    until: Annotated[str | None, typer.Option(help="Leave out exposures from this ISO 8601 time on.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Analyse an experiment: won, lost, no difference shown, or invalid (exit code 1)."""
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
            f"--surface: the metrics are those of the surface's outcomes, and {at} names no surface; give the one "
            "that served, such as --surface spaces or --surface surface.toml"
        )
    result = run(
        log, declaration, of_log, timezone=timezone, control=control, treatment=treatment, until_ms=until_ms
    )
    if out is not None:
        write(out, result, page(result))
    answer(result, as_json, text(result), held=result["verdict"] != "invalid")


@experiment.command("offline")
def offline(
    log: LogFolder,
    model: Model,
    event: Annotated[
        str | None, typer.Option(help="Event to count as reward; default the first outcome's.")
    ] = None,
    positions: Annotated[int | None, typer.Option(min=1, help="Positions to count; default all.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate the reward of an artifact from exposures with a randomised order in a served log.

    The result is better, worse, or no difference shown, against the ranking by the served scores;
    all three exit with 0. The reward at a position is its examination times the attraction of the
    candidate.
    """
    from training.experiment.offline import estimate

    progress = ProgressLines("offline")
    result = estimate.offline(log, model, event=event, positions=positions, progress=progress)
    answer(result, as_json, estimate.text(result))
