"""`python -m training`: from a log to a published artifact."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Commands
from serve.contract.validation import milliseconds, num_bytes, one_of
from serve.features.surface import load_surface
from serve.log.atomic_files import PRIVATE
from training.bench.commands import bench
from training.experiment.commands import experiment
from training.search.commands import refresh, search
from training.terminal import (
    PUBLISHED,
    Json,
    LogFolder,
    Model,
    Models,
    Seed,
    Share,
    SurfaceName,
    answer,
    artifact_of,
    decimal,
    say,
)

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
app.add_typer(bench, name="bench", help="Measure speed, and quality against what is known.")
app.add_typer(experiment, name="experiment", help="What an experiment came to, and whether to believe it.")


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The log to write; must not exist.")],
    rows: Annotated[int, typer.Option(help="Exposed candidates, about 55 an exposure.")] = 1_000_000,
    viewers: Annotated[int | None, typer.Option(help="Viewers; default by rows.")] = None,
    days: Annotated[float, typer.Option(help="Simulated days.")] = 2.0,
    end: Annotated[
        str | None, typer.Option(help="When the log ends: ISO time or now; default a fixed day.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same log.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a log of the simulated world of `spaces`."""
    from training.world.simulate import simulate as run

    os.umask(PRIVATE)
    with Share("simulate") as progress:
        summary = run(
            out,
            rows=rows,
            viewers=viewers,
            days=days,
            seed=seed,
            end_ms=None if end is None else milliseconds(end, "--end"),
            progress=progress,
        )
    line = f"{out}: {summary['rows']} rows, {summary['viewers']} viewers, {summary['candidates']} Spaces"
    answer(summary, as_json, f"{line} in {summary['seconds']:.1f} s")


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="The data set: ranklens.")],
    source: Annotated[Path, typer.Option(help="The folder that holds it.")],
    out: Annotated[Path, typer.Option(help="The log to write; must not exist.")],
    as_json: Json = False,
) -> None:
    """Turn a public data set into a canonical log."""
    from training.data.ranklens import import_ranklens

    one_of(name, ("ranklens",), "import")
    counts = import_ranklens(source, out)
    answer(counts, as_json, f"{out}: " + ", ".join(f"{n} {table}" for table, n in counts.items()))


@app.command()
def surface(
    log: LogFolder,
    out: Annotated[
        Path | None, typer.Option(help="The TOML file to write; must not exist. Default: stdout.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The surface's name; default the log folder's.")] = None,
    as_json: Json = False,
) -> None:
    """Draft the surface of a log: its fields, label, features and what popular means, each with its reason."""
    from serve.contract.validation import refuse_existing
    from training.drafting.draft import draft

    if out is not None:
        refuse_existing(out)
    drafted = draft(log, name)
    for note in drafted.notes:
        say(note)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(drafted.text, encoding="utf-8")
        text = f"{out}: look it through, then fit with --surface {out}"
    else:
        text = drafted.text
    result = {"surface": drafted.text, "notes": drafted.notes, "out": None if out is None else str(out)}
    answer(result, as_json, text)


@app.command()
def split(
    log: LogFolder,
    before: Annotated[Path, typer.Option(help="The log of what comes before; must not exist.")],
    after: Annotated[Path, typer.Option(help="The log of the rest; must not exist.")],
    at: Annotated[float, typer.Option(help="The share of exposures that come before, by time.")] = 0.8,
    as_json: Json = False,
) -> None:
    """Split a log in two by time."""
    from training.data.split import split as run

    counts = run(log, at, before, after)
    answer(
        counts, as_json, f"{counts['before_exposures']} exposures before, {counts['after_exposures']} after"
    )


@app.command()
def fit(
    surface: SurfaceName,
    log: LogFolder,
    out: Annotated[Path, typer.Option(help="The artifact to write; must not exist.")],
    seed: Seed = 0,
    epochs: Annotated[int | None, typer.Option(help="At most so many passes over the rows.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="What rows may take in memory, such as 4G; more come from disk. Default: half of what is free."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Ray Train workers.")] = 1,
    storage: Annotated[
        Path | None, typer.Option(help="Keep checkpoints here; a killed fit goes on from them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train, calibrate and write an artifact; the last tenth of the log by time validates."""
    from dataclasses import replace

    from training.fit.fit import fit as run
    from training.fit.loop import FitConfig
    from training.fit.progress import progress_on

    config = replace(FitConfig(), seed=seed, num_workers=workers)
    if epochs is not None:
        config = replace(config, epochs=epochs)
    with Share("features") as share:
        manifest = run(
            load_surface(surface),
            log,
            out,
            config,
            storage=storage,
            memory_bytes=None if memory is None else num_bytes(memory, "--memory"),
            prepared_share=share,
            progress=progress_on(sys.stderr),
        )
    for suspect in manifest["suspects"]:
        say(suspect)
    ours, theirs = manifest["metrics"]["validation"], manifest["metrics"]["popular"]
    line = f"{out}: {manifest['rows']} rows in {manifest['seconds']} s; validation auc {ours['auc']:.4f}, "
    line += f"logloss {ours['logloss']:.4f}, ndcg@10 {decimal(ours['ndcg@10'])} (popular {decimal(theirs['ndcg@10'])})"
    answer(manifest, as_json, line)


app.command()(search)
app.command()(refresh)


@app.command()
def evaluate(
    model: Model,
    log: LogFolder,
    history: Annotated[Path | None, typer.Option(help="The log that the state starts from.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="LightGBM too, trained on the history.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure an artifact on a log, beside `popular` on the same rows."""
    from training.evaluation.evaluate import evaluate as run

    with Share("evaluate") as progress:
        result = run(artifact_of(model), history, log, baselines=baselines, progress=progress)
    if result["rows_seen_in_training"]:
        say(
            f"{result['rows_seen_in_training']} of the rows are from the time that the model was made from: these "
            "figures flatter it; split the log first, and train on what comes before"
        )
    lines = [f"{result['rows']} rows, {result['slates']} slates"]
    for name in ("model", "popular", "lightgbm"):
        if name in result:
            lines.append(name.ljust(9) + "  ".join(f"{k} {decimal(v)}" for k, v in result[name].items()))
    for name, pair in result["paired"].items():
        lines.append(f"{name}: ndcg@10 {decimal(pair['ndcg@10'])}, standard error {decimal(pair['se'])}")
    answer(result, as_json, "\n".join(lines))


@app.command()
def replay(
    log: LogFolder,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    surface: Annotated[
        str | None, typer.Option(help="Name or TOML; default the model's, else the service's.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The artifact that is served: compare with its evaluation.")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="With --model: the log that the service's store was filled from.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder for report.json and scores.parquet; must not exist.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play a log through a running service in its own time, and measure the answers; 1 where one falls short.

    The service needs `clock: event` in the args of its cluster.yaml, a store filled from what comes before the log,
    and no other traffic. It falls short where a ranking is not full or, with --model, a score differs by over 1e-5
    from what `evaluate` computes.
    """
    from training.audit.http_replay import replay as run

    with Share("replay") as progress:
        result = run(
            log,
            url,
            surface=surface,
            model=None if model is None else artifact_of(model),
            history=history,
            out=out,
            progress=progress,
        )
    lines = [
        f"{result['rankings']} rankings in {result['seconds']:.1f} s, {result['requests_per_s']:.0f} requests/s, "
        + ", ".join(f"{n} {rung}" for rung, n in result["by_rung"].items()),
        f"{result['rows']} rows, {result['slates']} slates ({result['unscored_rows']} rows unscored)",
        "  ".join(f"{name} {decimal(result[name])}" for name in ("ndcg@10", "auc", "logloss")),
    ]
    if result["max_score_difference"] is not None:
        lines.append(f"scores differ by at most {result['max_score_difference']:.1e} from the evaluation's")
    answer(result, as_json, "\n".join([*lines, "held" if result["held"] else "NOT held"]))
    if not result["held"]:
        raise typer.Exit(1)


@app.command()
def audit(
    surface: SurfaceName,
    log: LogFolder,
    model: Annotated[
        Path | None, typer.Option(help="An artifact: compare its scores too, and say what has moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the features of served rankings again, from the log, and compare; 1 where one differs by over 1e-6.

    The log holds what the store was filled from and what was served since. The rankings that were logged with their
    features (`log_features` in `cluster.yaml`) are compared. With --model, those that it scored must score alike
    within 1e-5. Drift is said beside: the population stability index of each feature and of the scores against the
    model's training rows; below 0.1 it is usually read as nothing moved, above 0.25 as another population.
    """
    from training.audit.audit import audit as run
    from training.audit.audit import table

    with Share("audit") as progress:
        result = run(
            log, load_surface(surface), None if model is None else artifact_of(model), progress=progress
        )
    answer(result, as_json, table(result))
    if not result["held"]:
        raise typer.Exit(1)


@app.command()
def report(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder for report.html and MODEL_CARD.md.")],
    as_json: Json = False,
) -> None:
    """Write a model's report and card again, from what the artifact itself stores."""
    from training.evaluation.report import regenerate

    regenerate(artifact_of(model), out)
    answer({"out": str(out)}, as_json, f"{out / 'report.html'}, {out / 'MODEL_CARD.md'}")


@app.command()
def publish(
    model: Model,
    models: Models = PUBLISHED,
    promote: Annotated[bool, typer.Option(help="Make it the current one.")] = True,
    as_json: Json = False,
) -> None:
    """Verify an artifact, copy it to the published ones, and make it current."""
    from serve.model.artifact import load
    from training.fit.publish import publish as run

    model = artifact_of(model)
    version = run(model, models, make_current=promote)
    gate = load(models / version).manifest.get("gate")
    if gate and not gate["beats"]:
        say(f"{version} does not beat popular by two standard errors: see {model / 'report.html'}")
    answer(
        {"version": version, "current": promote},
        as_json,
        f"{models / version}{' is current' if promote else ''}",
    )


if __name__ == "__main__":
    app(prog_name="python -m training")
