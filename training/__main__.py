"""Command line of training: `python -m training` turns a log into a published artifact."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from serve.contract.commands import CONFIG, Json, answer, command_line
from serve.contract.errors import TabrankError
from serve.contract.validation import milliseconds, spelled
from serve.features.surface import load_surface
from serve.report.rows import columns
from serve.storage.atomic_files import PRIVATE
from serve.storage.bucket import place
from training.bench.commands import bench
from training.data.commands import imports
from training.experiment.commands import experiment
from training.search.commands import refresh, search
from training.terminal import (
    PARTS,
    PUBLISHED,
    LogFolder,
    Model,
    Models,
    NewLog,
    ProgressLines,
    Seed,
    SurfaceName,
    anywhere,
    artifact_of,
    decimal,
    print_progress,
)

History = Annotated[Path | None, anywhere(help="The log from which the state starts.")]

app = command_line(__doc__)
app.add_typer(imports, name="import")
app.add_typer(bench, name="bench", help="Measure the speed of scoring.")
app.add_typer(
    experiment, name="experiment", help="Analyse an experiment, or estimate one from explored rankings."
)


@app.command()
def simulate(
    out: NewLog,
    rows: Annotated[int, typer.Option(help="Exposed candidates, about 55 an exposure.")] = 1_000_000,
    viewers: Annotated[int | None, typer.Option(help="Viewers. Default: one for each 12 exposures.")] = None,
    days: Annotated[float, typer.Option(help="Simulated days.")] = 2.0,
    end: Annotated[str | None, typer.Option(help="End: an ISO time, or now. Default: a fixed day.")] = None,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same log.")] = 0,
    examination: Annotated[
        Literal["decay", "steps", "none", "cascade"], typer.Option(help="How attention falls with position.")
    ] = "decay",
    as_json: Json = False,
) -> None:
    """Write a log of the simulated world of `spaces`."""
    from training.world.simulate import simulate as run

    os.umask(PRIVATE)
    end_ms = None if end is None else milliseconds(end, "--end")
    summary = run(
        out,
        rows=rows,
        viewers=viewers,
        days=days,
        seed=seed,
        end_ms=end_ms,
        examination=examination,
        progress=ProgressLines("simulate"),
    )
    line = f"{out}: {summary['rows']} rows, {summary['viewers']} viewers, {summary['candidates']} Spaces"
    answer(summary, as_json, f"{line} in {spelled(summary['seconds'])}")


@app.command()
def surface(
    log: LogFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The new folder for surface.toml, its cluster.yaml and a request.json, or a .toml file for the "
            "surface alone. Default: stdout."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The surface's name. Default: the log folder's.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Draft even if many ids do not join.")] = False,
    as_json: Json = False,
) -> None:
    """Draft the surface of a log and its application, each choice with its reason.

    The draft has the fields, outcomes, features and popularity; the application needs no edit. Exit
    code 1, and nothing written, if under 95 % of the events or shown candidates join.
    """
    from serve.contract.validation import refuse_existing
    from training.drafting.application import write_application
    from training.drafting.draft import draft

    if out is not None:
        refuse_existing(out)
    drafted = draft(log, name)
    for note in drafted.notes:
        print_progress(note)
    if not (drafted.is_joined or yes):
        print_progress("nothing was drafted: correct the ids, or repeat with --yes")
        raise typer.Exit(1)
    result = {"surface": drafted.text, "notes": drafted.notes, "out": None if out is None else str(out)}
    if out is None:
        answer(result, as_json, drafted.text)
    elif out.suffix == ".toml":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(drafted.text, encoding="utf-8")
        answer(result, as_json, f"{out}: review it, then fit with --surface {out}")
    else:
        commands = write_application(drafted, log, out)
        lines = [f"{out / 'surface.toml'}: review it, above all the outcomes; then", *commands]
        answer(result | {"commands": commands}, as_json, "\n  ".join(lines))


@app.command()
def split(
    log: LogFolder,
    before: Annotated[Path, anywhere(help="The log of the earlier part; must not exist.")],
    after: Annotated[Path, anywhere(help="The log of the later part; must not exist.")],
    at: Annotated[float, typer.Option(help="Share of exposures in the earlier part.")] = 0.8,
    as_json: Json = False,
) -> None:
    """Split a log in two by time."""
    from training.data.split import split as run

    sizes = run(log, at, before, after)
    answer(sizes, as_json, f"{sizes['before_exposures']} exposures before, {sizes['after_exposures']} after")


@app.command()
def fit(
    surface: SurfaceName,
    log: LogFolder,
    out: Annotated[Path, typer.Option(help="The artifact to write; must not exist.")],
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows; default by the rows.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray Train workers, or 0 to train in this process. Default: 0 up to 2 million rows times epochs, "
            "about a minute; else 1."
        ),
    ] = None,
    storage: Annotated[Path | None, typer.Option(help="Folder from which a killed fit resumes.")] = None,
    as_json: Json = False,
) -> None:
    """Train, calibrate and write an artifact; the last tenth of the log by time validates.

    Batch, epochs and weight decay follow the number of rows. Where it takes two minutes at most,
    LightGBM teaches the network. Says when `search` would do better.
    """
    from training.evaluation.paired import EARNED
    from training.examination.examination import Examination
    from training.fit.fit import fit as run
    from training.fit.sizing import sized

    chosen = {"seed": seed, "num_workers": workers, "epochs": epochs}
    given = {name: value for name, value in chosen.items() if value is not None}
    manifest = run(
        load_surface(surface),
        log,
        out,
        partial(sized, **given),
        storage=storage,
        progress=ProgressLines("features"),
    )
    PARTS.end()
    for line in (Examination.of(manifest)[0].describe(), *manifest["suspects"], *manifest["advice"]):
        print_progress(line)
    ours, theirs = manifest["metrics"]["validation"], manifest["metrics"]["popular"]
    line = f"{out}: {manifest['rows']} rows in {spelled(manifest['seconds'])}; validation "
    for name in [*EARNED, "ndcg@10"]:
        line += f"{name} {decimal(ours[name])} (popular {decimal(theirs[name])}), " if name in ours else ""
    line += f"auc {ours['auc']:.4f}, logloss {ours['logloss']:.4f}"
    answer(manifest, as_json, f"{manifest['verdict']}\n{line}")


app.command()(search)
app.command()(refresh)


@app.command()
def evaluate(
    model: Model,
    log: LogFolder,
    history: History = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also LightGBM, tuned on the past.")] = False,
    as_json: Json = False,
) -> None:
    """Measure an artifact on a log, beside `popular` and the baseline on the same rows."""
    from training.evaluation.evaluate import evaluate as run
    from training.evaluation.verdict import order, outcomes, verdict

    result = run(model, history, log, baselines=baselines, progress=ProgressLines("evaluate"))
    _warn_of_training(result["rows_seen_in_training"])
    lines = [verdict(result), f"{result['rows']} rows, {order(result)}"]
    for name in result["contenders"]:
        lines.append(name.ljust(9) + "  ".join(f"{k} {decimal(v)}" for k, v in result[name].items()))
    if "outcomes" in result:
        lines.append(columns(outcomes(result)))
    answer(result, as_json, "\n".join(lines))


@app.command()
def weights(
    model: Model,
    log: LogFolder,
    sweep: Annotated[str, typer.Option(help="An outcome and its range of weights, such as hide=-50..0.")],
    steps: Annotated[int, typer.Option(min=2, max=101, help="Weights to try, evenly spaced.")] = 11,
    give: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the primary outcome that may be given up.")
    ] = 0.01,
    history: History = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Rank a log along a sweep of a weight: what each weight buys and costs, before any experiment.

    For each weight, the amount of each outcome per exposure without position bias, and its change
    against the surface's own weights, with 95 % intervals. Prints the line for an arm in
    cluster.yaml of the strongest weight at which the whole interval of the primary outcome's change
    lies above the share to give up, and the swept outcome changes as the weight asks.
    """
    from serve.contract.validation import refuse_existing
    from training.evaluation.sweep import sweep_log
    from training.evaluation.sweep_page import page, text, write

    if out is not None:
        refuse_existing(out)
    result = sweep_log(model, history, log, sweep, steps, give, ProgressLines("weights"))
    _warn_of_training(result["rows_seen_in_training"])
    if out is not None:
        write(out, result, page(result))
    answer(result, as_json, text(result))


@app.command()
def slate(
    log: LogFolder,
    arm: Annotated[str, typer.Option(help="The arm whose rules are replayed.")],
    config: Annotated[Path, typer.Option(help="File that declares it.")] = CONFIG,
    history: History = None,
    out: Annotated[Path | None, typer.Option(help="New folder for report.json and report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Rank a log with the rules of an arm: what all and each of them cost.

    For all rules and each one, the amount of each outcome per exposure with it and without, free of
    position bias and with 95 % intervals; the share of rankings that it changes, how far candidates
    move, and how impressions are spread, by host for example. Surface and models are those of the
    file.
    """
    from serve.contract.validation import refuse_existing
    from training.evaluation.slate_cost import cost_of_arm
    from training.evaluation.slate_cost_page import page, text
    from training.evaluation.sweep_page import write
    from training.experiment.declared import declared_arm

    if out is not None:
        refuse_existing(out)
    declared, args = declared_arm(config, arm)
    base = config.parent
    result = cost_of_arm(declared, args.load_surface(base), place(args.models, base), log, history=history)
    _warn_of_training(result.get("rows_seen_in_training", 0))
    if out is not None:
        write(out, result, page(result))
        print_progress(f"the page is {out / 'report.html'}")
    answer(result, as_json, text(result))


@app.command()
def replay(
    log: LogFolder,
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    surface: Annotated[str | None, typer.Option(help="Name or file. Default: model's or service's.")] = None,
    model: Annotated[
        Path | None,
        anywhere(callback=artifact_of, help="The artifact that is served; compare with its evaluation."),
    ] = None,
    history: Annotated[Path | None, anywhere(help="With --model: the log that filled the store.")] = None,
    as_json: Json = False,
) -> None:
    """Replay a log through a running service in order of its time, and measure the answers.

    The service needs `clock: event` in the args of its cluster.yaml, a store filled from the log
    before this one, and no other traffic. Exit code 1 if a ranking is not full or, with --model, a
    score differs by more than 1e-5 from that of `evaluate`.
    """
    from training.audit.http_replay import replay as run

    progress = ProgressLines("replay")
    result = run(log, url, surface=surface, model=model, history=history, progress=progress)
    lines = [
        f"{result['rankings']} rankings in {spelled(result['seconds'])}, {result['requests_per_s']:.0f} requests/s, "
        + ", ".join(f"{n} {rung}" for rung, n in result["by_rung"].items()),
        f"{result['rows']} rows, {result['slates']} slates ({result['unscored_rows']} rows unscored)",
        "  ".join(f"{name} {decimal(result[name])}" for name in ("ndcg@10", "auc", "logloss")),
    ]
    if result["max_score_difference"] is not None:
        lines.append(f"scores differ by at most {result['max_score_difference']:.1e} from the evaluation's")
    lines.append("held" if result["held"] else "NOT held")
    answer(result, as_json, "\n".join(lines), held=result["held"])


@app.command()
def audit(
    surface: SurfaceName,
    log: LogFolder,
    model: Annotated[
        Path | None,
        anywhere(callback=artifact_of, help="An artifact: compare its scores too, and report drift."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute the features of served rankings from the log, and compare them.

    The log holds all records that filled the store and all that were served since. The rankings
    that were logged with their features (`log_features` in `cluster.yaml`) are compared. Exit code
    1 if a feature differs by more than 1e-6 or, with --model, a score of that model by more than
    1e-5.

    With --model, also reports drift: the population stability index of each feature and of the
    scores against the model's training rows. Below 0.1 it is usually read as no change, above 0.25
    as another population. A feature of two cells is judged on 53 rows, one of 11 on 235, or more if
    the training rows were few; rows of a ranking with one value count as one. Exit code 2 if
    nothing differs, but no feature has enough rows.
    """
    from training.audit.audit import audit as run
    from training.audit.audit import table

    result = run(log, load_surface(surface), model, progress=ProgressLines("audit"))
    answer(result, as_json, table(result), held=result["held"])
    if (result.get("drift") or {}).get("judged") == 0:
        raise typer.Exit(2)


@app.command()
def forget(
    log: LogFolder,
    viewers: Annotated[Path, typer.Option(help="A text file with the ids of viewers, one a line.")],
    models: Models = PUBLISHED,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Erase viewers from a log, its snapshots and the store of its service, which may run.

    Their rankings and events still count for the candidates, without a hint of who it was. Names
    the published models that learned from them. If it is interrupted, run it again.
    """
    from training.erasure.forget import describe, read_viewers
    from training.erasure.forget import forget as run

    # Of a service that published nothing yet, the default is missing.
    if models != PUBLISHED and not models.is_dir():
        raise TabrankError(f"--models {models}: no such folder; name that of the published models")
    os.umask(PRIVATE)
    result = run(log, read_viewers(viewers), models, dry_run=dry_run, progress=ProgressLines("forget"))
    answer(result, as_json, "\n".join(describe(log, models, result)))


@app.command()
def report(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder for report.html, MODEL_CARD.md and evaluation.json.")],
    as_json: Json = False,
) -> None:
    """Write a model's report and card again, from the evaluation that the artifact stores."""
    from training.evaluation.report import regenerate

    regenerate(model, out)
    answer({"out": str(out)}, as_json, f"{out / 'report.html'}, {out / 'MODEL_CARD.md'}")


@app.command()
def publish(
    model: Model,
    models: Models = PUBLISHED,
    promote: Annotated[bool, typer.Option(help="Make it the current model.")] = True,
    as_json: Json = False,
) -> None:
    """Verify an artifact, copy it to the published ones, and make it the current model."""
    from serve.model.artifact import load
    from training.fit.publish import publish as run

    version = run(model, models, make_current=promote)
    # The first release wrote none.
    verdict = load(models / version).manifest.get("verdict", "")
    print_progress(f"{verdict} See {model / 'report.html'}.".lstrip())
    line = f"{models / version}{' is current' if promote else ''}"
    answer({"version": version, "current": promote}, as_json, line)


def _warn_of_training(num_rows: int) -> None:
    """Say how many rows the model may have learned from."""
    if num_rows:
        print_progress(
            f"{num_rows} rows are from the model's training time, so these figures are too optimistic; split the log "
            "first, and train on the earlier part"
        )


if __name__ == "__main__":
    app(prog_name="python -m training")
