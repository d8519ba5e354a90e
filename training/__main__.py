"""Command line of training: `python -m training` turns a log into a published artifact."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import CONFIG, Json, answer, command_line
from serve.contract.errors import TabrankError
from serve.contract.validation import milliseconds, spelled
from serve.features.surface import load_surface
from serve.report.rows import columns
from serve.storage.atomic_files import PRIVATE
from serve.storage.bucket import place
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
    ReportFolder,
    Seed,
    SurfaceName,
    anywhere,
    artifact_of,
    decimal,
    new_folder,
    print_progress,
)

History = Annotated[Path | None, anywhere(help="The log from which the state starts.")]

app = command_line(__doc__, extra="training")
app.add_typer(imports, name="import")
app.add_typer(
    experiment, name="experiment", help="Analyse an experiment, or estimate one from explored rankings."
)


@app.command()
def simulate(
    out: NewLog,
    rows: Annotated[int, typer.Option(help="Shown candidates; a ranking shows about 55.")] = 1_000_000,
    viewers: Annotated[int | None, typer.Option(help="Viewers. Default: one for every 12 rankings.")] = None,
    days: Annotated[float, typer.Option(help="Days that the log covers.")] = 2.0,
    end: Annotated[str | None, typer.Option(help="Its end: ISO time or now. Default: a fixed day.")] = None,
) -> None:
    """Simulate viewers of audio rooms (the surface `spaces`), and write their log."""
    from training.world.simulate import simulate as run

    os.umask(PRIVATE)
    end_ms = None if end is None else milliseconds(end, "--end")
    progress = ProgressLines("simulate")
    found = run(out, rows=rows, viewers=viewers, days=days, end_ms=end_ms, progress=progress)
    size = f"{found['rows']:,} rows, {found['viewers']:,} viewers, {found['candidates']:,} rooms"
    print(f"{out}: {size} in {spelled(found['seconds'])}")


@app.command()
def surface(
    log: LogFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=new_folder,
            help="A new folder for surface.toml, a matching cluster.yaml and a request.json; or a .toml file, to "
            "write the surface alone. Default: print the surface.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the surface. Default: the log folder's.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Draft even if many ids match no record.")] = False,
) -> None:
    """Draft a surface from a log, with a comment that gives the reason for each choice.

    A surface says what is ranked and how: the draft declares the fields, outcomes, features and the
    popular order. With a folder as --out, the command also writes the service's configuration,
    which needs no edit.

    If less than 95 % of the events or of the shown candidates match a record of the log, nothing is
    written and the exit code is 1.
    """
    from training.drafting.application import write_application
    from training.drafting.draft import draft

    drafted = draft(log, name)
    for note in drafted.notes:
        print_progress(note)
    if not (drafted.is_joined or yes):
        print_progress("nothing was drafted: correct the ids, or repeat with --yes")
        raise typer.Exit(1)
    if out is None:
        print(drafted.text)
    elif out.suffix == ".toml":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(drafted.text, encoding="utf-8")
        print(f"{out}: review it, then fit with --surface {out}")
    else:
        commands = write_application(drafted, log, out)
        head = f"{out / 'surface.toml'}: review it, above all the outcomes; then"
        print("\n  ".join([head, *commands]))


@app.command()
def split(
    log: LogFolder,
    out: Annotated[Path, anywhere(help="Folder of the two new logs, `before` and `after`.")],
    at: Annotated[float, typer.Option(help="Share of the exposures that the earlier part gets.")] = 0.8,
) -> None:
    """Split a log into an earlier and a later part, to train on one and evaluate on the other."""
    from training.data.split import split as run

    before, after = out / "before", out / "after"
    sizes = run(log, at, before, after)
    print(f"{before}: {sizes['before_exposures']:,} exposures")
    print(f"{after}: {sizes['after_exposures']:,} exposures")


@app.command()
def fit(
    surface: SurfaceName,
    log: LogFolder,
    out: Annotated[Path, typer.Option(help="The artifact to write; must not exist.")],
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows. Default: by row count.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Ray Train workers, or 0 to train in this process. Default: 0 if rows times epochs are at most "
            "2 million, which takes about a minute; else 1."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model, calibrate it, and write it as an artifact.

    The last tenth of the log by time is kept for validation. Batch size, epochs and weight decay
    follow from the number of rows. If fitting LightGBM is expected to take at most two minutes, its
    predictions also teach the network. The command says when `search` would give a better model.

    Exit code 1: a column may know the future, so `publish` refuses the artifact. The verdict asks.
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
        ProgressLines("features"),
    )
    PARTS.end()
    for line in (Examination.of(manifest)[0].describe(), *manifest["advice"]):
        print_progress(line)
    ours, theirs = manifest["metrics"]["validation"], manifest["metrics"]["popular"]
    line = f"{out}: {manifest['rows']} rows in {spelled(manifest['seconds'])}; validation "
    for name in [*EARNED, "ndcg@10"]:
        line += f"{name} {decimal(ours[name])} (popular {decimal(theirs[name])}), " if name in ours else ""
    line += f"auc {ours['auc']:.4f}, logloss {ours['logloss']:.4f}"
    answer(manifest, as_json, f"{manifest['verdict']}\n{line}", held=not manifest["suspects"])


app.command()(search)
app.command()(refresh)


@app.command()
def evaluate(
    model: Model,
    log: LogFolder,
    history: History = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also tune and measure LightGBM.")] = False,
    by: Annotated[str | None, typer.Option(metavar="FIELD", help="Measure a field's values too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on a log, and on the same rows the popular order and the surface's rule."""
    from training.evaluation.evaluate import evaluate as run
    from training.evaluation.verdict import order, outcomes, segmented, slices, verdict

    result = run(model, history, log, ProgressLines("evaluate"), baselines=baselines, by=by)
    _warn_of_training(result["rows_seen_in_training"])
    lines = [verdict(result), f"{result['rows']} rows, {order(result)}"]
    for name in result["contenders"]:
        lines.append(name.ljust(9) + "  ".join(f"{k} {decimal(v)}" for k, v in result[name].items()))
    if "outcomes" in result:
        lines.append(columns(outcomes(result)))
    lines += [columns(slices(result["segments"])), segmented(result["segments"])] if by else []
    answer(result, as_json, "\n".join(lines))


@app.command()
def weights(
    model: Model,
    log: LogFolder,
    sweep: Annotated[str, typer.Option(help="An outcome and its range of weights, such as hide=-50..0.")],
    history: History = None,
    out: ReportFolder = None,
) -> None:
    """Try a range of weights for an outcome on a log: what each weight gains and costs.

    No experiment is needed. For each of eleven weights, the command estimates the amount of every
    outcome per exposure, corrected for position bias, and its change against the surface's own
    weights, with 95 % intervals.

    It recommends the strongest weight that is shown to change the swept outcome in the wanted
    direction, even though several were tried, and to lose less than 1 % of the primary outcome. No
    other outcome may be shown to lose more, and the model must have beaten its rivals. It prints
    this weight as a line for an arm in cluster.yaml.
    """
    from training.evaluation.what_if import sweep_log
    from training.evaluation.what_if_page import weights_page, weights_text, write

    result = sweep_log(model, history, log, sweep)
    _warn_of_training(result["rows_seen_in_training"])
    if out is not None:
        write(out, result, weights_page(result))
    print(weights_text(result))


@app.command()
def slate(
    log: LogFolder,
    arm: Annotated[str, typer.Option(help="The arm whose rules are replayed.")],
    config: Annotated[Path, typer.Option(help="The file that declares the arm.")] = CONFIG,
    history: History = None,
    out: ReportFolder = None,
) -> None:
    """Measure on a log what an arm's slate rules cost, all together and each alone.

    The log is ranked with and without the rules. For each rule, the command prints the amount of
    every outcome per exposure both ways, corrected for position bias and with 95 % intervals; the
    share of rankings that the rule changes; how far it moves candidates; and how it spreads
    impressions, for example over hosts. Surface and models are those that the file names.
    """
    from training.evaluation.what_if import cost_of_arm
    from training.evaluation.what_if_page import slate_page, slate_text, write
    from training.experiment.declared import declared_arm

    declared, args = declared_arm(config, arm)
    base = config.parent
    result = cost_of_arm(declared, args.load_surface(base), place(args.models, base), log, history)
    _warn_of_training(result["rows_seen_in_training"])
    if out is not None:
        write(out, result, slate_page(result))
    print(slate_text(result))


@app.command()
def audit(
    surface: SurfaceName,
    log: LogFolder,
    model: Annotated[
        Path | None,
        anywhere(callback=artifact_of, help="An artifact, to compare its scores too and to report drift."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute the features of served rankings from the log, and compare them with those served.

    The log must hold all records that filled the store and all that were served since. Only
    rankings that were logged with their features are compared (`log_features` in `cluster.yaml`).

    With --model, the command also compares that model's scores, and reports drift: the population
    stability index of each feature and of the scores, between the model's training rows and the
    served rows. Below 0.1, it is usually read as no change; above 0.25, as another population.

    The index needs enough rows: 53 for a feature with two cells, 235 for one with 11, and more if
    the training rows were few. Rows of one ranking with the same value count as one.

    Exit code 1: a feature differs by more than 1e-6, or a score by more than 1e-5. Exit code 2:
    nothing differs, but no feature has enough rows to judge its drift.
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
    viewers: Annotated[
        Path, typer.Option(help="A file with one viewer's id per line; in a .jsonl file, as a JSON string.")
    ],
    models: Annotated[Path | None, anywhere(help="The published models. Default: the service's.")] = None,
    without_journal: Annotated[
        bool, typer.Option("--without-journal", help="Erase although the log's store is lost for good.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; change nothing.")] = False,
) -> None:
    """Erase viewers from a log, from its snapshots, and from the store of its service.

    The service may run meanwhile. Rankings and events of these viewers still count for the
    candidates, but no longer say whose they were. The command lists the published models that
    learned from the viewers. If it is interrupted, run it again.

    Exit code 2: for example, the log still needs the journal of a store that cannot be read here.
    """
    from training.erasure.forget import describe, read_viewers
    from training.erasure.forget import forget as run

    # The default folder is missing until the first model is published, so only a given one must
    # exist.
    if models and not models.is_dir():
        raise TabrankError(f"--models {models}: no such folder; name the folder of the published models")
    os.umask(PRIVATE)
    ids, progress = read_viewers(viewers), ProgressLines("forget")
    result = run(log, ids, models, without_journal=without_journal, dry_run=dry_run, progress=progress)
    print("\n".join(describe(log, result)))


@app.command()
def publish(
    model: Model,
    models: Models = PUBLISHED,
    promote: Annotated[bool, typer.Option(help="Also make it the current model.")] = True,
) -> None:
    """Verify an artifact, copy it to the published models, and make it the current one."""
    from serve.model.artifact import load
    from training.fit.publish import publish as run

    version = run(model, models, make_current=promote)
    print_progress(f"{load(models / version).manifest['verdict']} See {model / 'report.html'}.")
    print(f"{models / version}{' is current' if promote else ''}")


@app.command()
def bench(model: Model) -> None:
    """Measure how many candidates an artifact scores per second, with ONNX Runtime and with torch.

    Both use one core. Where torch finds a GPU, it scores there, unless CUDA_VISIBLE_DEVICES is
    empty.
    """
    from training.bench.scorer import bench_scorer, table

    print(table(bench_scorer(model)))


def _warn_of_training(num_rows: int) -> None:
    """Warn if the model may have learned from some of the evaluated rows, namely `num_rows`."""
    if num_rows:
        print_progress(
            f"{num_rows} rows are from the time on which the model was trained, so these figures are too optimistic; "
            "split the log first (`training split`), and train on the earlier part"
        )


if __name__ == "__main__":
    app(prog_name="python -m training")
