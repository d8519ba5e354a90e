"""`python -m serve`: start, fill and look at the ranking service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.commands import Commands
from serve.errors import TabrankError
from serve.render.commands import render
from serve.strict import milliseconds

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)
bench = typer.Typer(no_args_is_help=True)
app.add_typer(bench, name="bench", help="Measure speed on this machine.")
app.add_typer(render, name="render", help="Write the launcher file or the RayService of a cluster.")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunFolder = Annotated[Path, typer.Option(help="Where the service keeps its logs and process ids.")]
ConfigFile = Annotated[Path, typer.Argument(help="The file that declares the service.")]
CONFIG = Path("cluster.yaml")
RUN = Path("var/run")


@app.command()
def up(
    config: ConfigFile = CONFIG,
    run: RunFolder = RUN,
    haproxy: Annotated[bool, typer.Option(help="The fast ingress, or Ray's plain proxy.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to answer.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Start the service of a `cluster.yaml`, or deploy its changes, and return when it answers."""
    from serve.cluster import up as start

    service = start(config, run_dir=run, haproxy=haproxy, timeout_s=timeout, progress=_say)
    _answer(service, as_json, f"{service['action']}: {service['url']} answers ({service['seconds']} s)")


@app.command()
def down(run: RunFolder = RUN, as_json: Json = False) -> None:
    """Stop the service and every process of it, whatever state it is in."""
    from serve.cluster import down as stop

    stopped = stop(run, progress=_say)
    _answer(stopped, as_json, f"stopped (it was {stopped['was']})")


@app.command()
def status(run: RunFolder = RUN, as_json: Json = False) -> None:
    """What runs. Exit code 1 if nothing does."""
    from serve.cluster import status as look

    found = look(run)
    _answer(found, as_json, "\n".join(f"{key}: {value}" for key, value in found.items()))
    if found["state"] != "ready":
        raise typer.Exit(1)


@app.command()
def check(config: ConfigFile = CONFIG, as_json: Json = False) -> None:
    """Read a `cluster.yaml` strictly. Exit code 1 if it is refused."""
    from serve.config import read

    try:
        read(config)
    except TabrankError as error:
        _answer({"accepted": False, "detail": str(error)}, as_json, str(error))
        raise typer.Exit(1) from None
    _answer({"accepted": True}, as_json, f"{config}: accepted")


@app.command()
def load(
    log: Annotated[Path, typer.Option(help="The log to replay: a folder of Parquet.")],
    surface: Annotated[
        str, typer.Option(help="A shipped surface's name, or the path of a TOML file.")
    ] = "spaces",
    store: Annotated[
        str, typer.Option(help="The store to fill; what it held is replaced.")
    ] = "lmdb:var/store",
    until: Annotated[
        str | None, typer.Option(help="Replay what lies before: ISO time or milliseconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fill the store with the state that a log leaves."""
    from serve.load import load as fill
    from serve.stores.opening import shown
    from serve.surface import load_surface

    until_ms = None if until is None else milliseconds(until, "--until")
    counts = fill(load_surface(surface), log, store, Path.cwd(), until_ms)
    _answer(
        counts, as_json, f"{shown(store)}: {counts['viewers']} viewers, {counts['candidates']} candidates"
    )


@bench.command()
def fetch(as_json: Json = False) -> None:
    """Time of a request's fetch and features, by batch, viewers and live candidates; takes 5 GB for a while."""
    from serve.bench import bench_fetch, table

    result = bench_fetch(progress=_say)
    _answer(result, as_json, table(result))


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _answer(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


if __name__ == "__main__":
    app(prog_name="python -m serve")
