"""Commands of `training experiment`: report, validate, offline, offline-check, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serve.contract.commands import Commands, Json, answer
from training.terminal import LogFolder, Model, ProgressBar, artifact_of, print_progress

experiment = typer.Typer(cls=Commands, no_args_is_help=True)
CONFIG = Path("cluster.yaml")


@experiment.command("report")
def report(
    log: LogFolder,
    name: Annotated[str, typer.Option("--experiment", help="The experiment's name.")],
    config: Annotated[Path | None, typer.Option(help="File that declares it; default cluster.yaml.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of the days.")] = "UTC",
    control: Annotated[str | None, typer.Option(help="Arm to compare with; default the popular one.")] = None,
    treatment: Annotated[str | None, typer.Option(help="Arm to evaluate; needed if several remain.")] = None,
    until: Annotated[str | None, typer.Option(help="Leave out exposures from this ISO 8601 time on.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Analyse an experiment: won, lost, no difference shown, or invalid (exit code 1)."""
    from serve.contract.validation import milliseconds, refuse_existing
    from training.experiment.declared import Declared, declared
    from training.experiment.page import text
    from training.experiment.report import report as run
    from training.experiment.report import write_report

    if out is not None:
        refuse_existing(out)
    until_ms = None if until is None else milliseconds(until, "--until")
    at = config or CONFIG
    is_there = config is not None or at.is_file()
    declaration = declared(at, name) if is_there else Declared(name)
    if declaration.source is None:
        why = f"{at} declares no experiment {name!r}" if is_there else f"{at} does not exist"
        print_progress(f"{why}: using the log alone, with defaults")
    result = run(log, declaration, timezone=timezone, control=control, treatment=treatment, until_ms=until_ms)
    if out is not None:
        write_report(out, result)
    answer(result, as_json, text(result), held=result["verdict"] != "invalid")


@experiment.command("validate")
def validate(
    runs: Annotated[int, typer.Option(min=50, help="Simulated experiments for each check.")] = 1_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same viewers.")] = 0,
    as_json: Json = False,
) -> None:
    """Validate the statistics on simulated viewers; exit code 1 if a check fails."""
    from training.experiment import validation

    result = validation.validate(runs, seed=seed, progress=print_progress)
    answer(result, as_json, validation.table(result), held=result["held"])


@experiment.command("offline")
def offline(
    log: LogFolder,
    model: Model,
    event: Annotated[str | None, typer.Option(help="Event to count as reward; default the label's.")] = None,
    positions: Annotated[int | None, typer.Option(min=1, help="Positions to count; default all.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate the reward of an artifact from exposures with a randomised order in a served log.

    The result is better, worse, or no difference shown, against the ranking by the served scores;
    all three exit with 0. The reward at a position is its examination times the attraction of the
    candidate.
    """
    from training.experiment.offline import estimate

    with ProgressBar("offline") as progress:
        result = estimate.offline(log, model, event=event, positions=positions, progress=progress)
    answer(result, as_json, estimate.text(result))


@experiment.command("offline-check")
def offline_check(
    runs: Annotated[int, typer.Option(min=1, help="Simulated logs.")] = 1_000,
    as_json: Json = False,
) -> None:
    """Check the offline estimates on logs with a known truth; exit code 1 if they fail."""
    from training.experiment.offline.check import check, text

    with ProgressBar("offline-check") as progress:
        result = check(runs, progress=progress)
    answer(result, as_json, text(result), held=result["held"])


@experiment.command("simulate")
def simulate(
    log: Annotated[Path, typer.Option(help="Log that `training simulate` wrote and that filled the store.")],
    days: Annotated[float, typer.Option(min=0.01, max=365, help="Days to simulate.")] = 7.0,
    url: Annotated[str, typer.Option(help="URL of the service.")] = "http://127.0.0.1:8000",
    rankings: Annotated[int, typer.Option(min=1, help="Number of visits in these days.")] = 50_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same days.")] = 0,
    model: Annotated[Path | None, typer.Option(help="Served artifact: simulates each arm alone too.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for truth.json and truth.parquet.")] = None,
    as_json: Json = False,
) -> None:
    """Continue a simulated world with the running service; exit code 1 if a ranking was not full.

    The service needs `clock: event` in the args of its cluster.yaml, two arms, a store filled from
    the log, and no other traffic. It writes the log that `experiment report` reads. This command
    prints the true effect.
    """
    from training.experiment.rerun.simulate import simulate as run
    from training.experiment.rerun.truth import table

    given: dict[str, Any] = {"days": days, "rankings": rankings, "seed": seed, "out": out}
    result = run(log, url, **given, model=artifact_of(model), progress=ProgressBar)
    lines = [
        f"{result['rankings']} rankings in {result['seconds']:.1f} s, {result['rankings_per_s']:.0f} a second; "
        f"{result['events']} events; " + ", ".join(f"{n} of {arm}" for arm, n in result["exposures"].items()),
        table(result),
        "held" if result["held"] else f"NOT held: {result['not_full']} rankings were not full",
    ]
    answer(result, as_json, "\n".join(lines), held=result["held"])
