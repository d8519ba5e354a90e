"""`python -m training`: from a log to a published artifact."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.errors import TabrankError
from serve.strict import milliseconds, one_of
from serve.surface import load_surface

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
bench = typer.Typer(no_args_is_help=True)
app.add_typer(bench, name="bench", help="Measure speed on this machine.")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SurfaceName = Annotated[str, typer.Option(help="A shipped surface's name, or the path of a TOML file.")]
LogFolder = Annotated[Path, typer.Option(help="A log: a folder of Parquet.")]


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
    from training.simulate import simulate as run

    with _progress("simulate") as progress:
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
    _answer(summary, as_json, f"{line} in {summary['seconds']:.1f} s")


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="The data set: ranklens.")],
    source: Annotated[Path, typer.Option(help="The folder that holds it.")],
    out: Annotated[Path, typer.Option(help="The log to write; must not exist.")],
    as_json: Json = False,
) -> None:
    """Turn a public data set into a canonical log."""
    from training.ranklens import import_ranklens

    one_of(name, ("ranklens",), "import")
    counts = import_ranklens(source, out)
    _answer(counts, as_json, f"{out}: " + ", ".join(f"{n} {table}" for table, n in counts.items()))


@app.command()
def split(
    log: LogFolder,
    before: Annotated[Path, typer.Option(help="The log of what comes before; must not exist.")],
    after: Annotated[Path, typer.Option(help="The log of the rest; must not exist.")],
    at: Annotated[float, typer.Option(help="The share of exposures that come before, by time.")] = 0.8,
    as_json: Json = False,
) -> None:
    """Split a log in two by time."""
    from training.split import split as run

    counts = run(log, at, before, after)
    _answer(
        counts, as_json, f"{counts['before_exposures']} exposures before, {counts['after_exposures']} after"
    )


@app.command()
def fit(
    surface: SurfaceName,
    log: LogFolder,
    out: Annotated[Path, typer.Option(help="The artifact to write; must not exist.")],
    seed: Annotated[int, typer.Option(help="Of weights and order; the same gives the same model.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="At most so many passes over the rows.")] = None,
    workers: Annotated[int, typer.Option(help="Ray Train workers.")] = 1,
    storage: Annotated[
        Path | None, typer.Option(help="Keep checkpoints here; a killed fit goes on from them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train, calibrate and write an artifact; the last tenth of the log by time validates."""
    from dataclasses import replace

    from training.fit import fit as run
    from training.loop import FitConfig
    from training.trainer import progress_on

    config = replace(FitConfig(), seed=seed, num_workers=workers)
    if epochs is not None:
        config = replace(config, epochs=epochs)
    manifest = run(load_surface(surface), log, out, config, storage=storage, progress=progress_on(sys.stderr))
    ours, theirs = manifest["metrics"]["validation"], manifest["metrics"]["popular"]
    line = f"{out}: {manifest['rows']} rows in {manifest['seconds']} s; validation auc {ours['auc']:.4f}, "
    line += f"logloss {ours['logloss']:.4f}, ndcg@10 {_number(ours['ndcg@10'])} (popular {_number(theirs['ndcg@10'])})"
    _answer(manifest, as_json, line)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="An artifact.")],
    log: LogFolder,
    history: Annotated[Path | None, typer.Option(help="The log that the state starts from.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="LightGBM too, trained on the history.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure an artifact on a log, beside `popular` on the same rows."""
    from training.evaluate import evaluate as run

    with _progress("evaluate") as progress:
        result = run(model, history, log, baselines=baselines, progress=progress)
    lines = [f"{result['rows']} rows, {result['slates']} slates"]
    for name in ("model", "popular", "lightgbm"):
        if name in result:
            lines.append(name.ljust(9) + "  ".join(f"{k} {_number(v)}" for k, v in result[name].items()))
    for name, pair in result["paired"].items():
        lines.append(f"{name}: ndcg@10 {_number(pair['ndcg@10'])}, standard error {_number(pair['se'])}")
    _answer(result, as_json, "\n".join(lines))


@app.command()
def publish(
    model: Annotated[Path, typer.Option(help="An artifact.")],
    models: Annotated[Path, typer.Option(help="The folder of published artifacts.")] = Path("var/models"),
    promote: Annotated[bool, typer.Option(help="Make it the current one.")] = True,
    as_json: Json = False,
) -> None:
    """Verify an artifact, copy it to the published ones, and make it current."""
    from serve.artifact import promote as point
    from serve.artifact import publish as copy
    from serve.scorers import load_scorer

    load_scorer(model, "onnx")
    version = copy(model, models)
    if promote:
        point(models, version)
    _answer(
        {"version": version, "current": promote},
        as_json,
        f"{models / version}{' is current' if promote else ''}",
    )


@bench.command("scorer")
def bench_scorer(
    model: Annotated[
        Path | None, typer.Option(help="An artifact; default two networks of 40 features, random weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Candidates a second on one core: pytorch_tabnet, the network in eager mode and exported, and ours."""
    from training.bench import bench_scorer as run
    from training.bench import table

    result = run(model, progress=_say)
    _answer(result, as_json, table(result))


class _progress:  # noqa: N801
    """A bar on a terminal, a plain line every tenth elsewhere; on stderr."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = 0

    def __enter__(self) -> Any:
        return self._show

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def _show(self, share: float) -> None:
        if sys.stderr.isatty():
            width = min(40, shutil.get_terminal_size().columns - 20)
            sys.stderr.write(f"\r{self._what} [{'#' * int(share * width):<{width}}] {share:4.0%}")
        elif int(share * 10) > self._said:
            self._said = int(share * 10)
            sys.stderr.write(f"{self._what} {self._said * 10} %\n")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _answer(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


def main() -> None:
    """Run a command; a user's mistake is one sentence on stderr and exit code 2."""
    try:
        app()
    except TabrankError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
