"""How commands are spoken to and speak: options that several have; one answer on stdout, all else on stderr."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

SurfaceName = Annotated[str, typer.Option(help="A shipped surface's name, or the path of a TOML file.")]
LogFolder = Annotated[Path, typer.Option(help="A log: a folder of Parquet.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights and order; the same gives the same model.")]
Model = Annotated[Path, typer.Option(help="An artifact, or the folder of a search.")]
Models = Annotated[Path, typer.Option(help="The folder of published artifacts.")]
PUBLISHED = Path("var/models")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def answer(result: dict[str, Any], as_json: bool, text: str) -> None:
    """What a command was asked for: JSON, or text for people."""
    print(json.dumps(result, allow_nan=False) if as_json else text)


def say(message: str) -> None:
    """A line of progress."""
    print(message, file=sys.stderr)


def decimal(value: float | None) -> str:
    """A measure with four decimals; a dash where it is not defined."""
    return "–" if value is None else f"{value:.4f}"


class Share:
    """A bar on a terminal, a plain line every tenth elsewhere; told of shares from 0 to 1 in a `with` block."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def __call__(self, share: float) -> None:
        """So much is done."""
        if sys.stderr.isatty():
            width = min(40, shutil.get_terminal_size().columns - 20)
            sys.stderr.write(f"\r{self._what} [{'#' * int(share * width):<{width}}] {share:4.0%}")
        elif int(share * 10) > self._said:
            self._said = int(share * 10)
            sys.stderr.write(f"{self._what} {self._said * 10} %\n")


def artifact_of(model: Path) -> Path:
    """The artifact that a path names: itself, or that of a search's folder."""
    found = model / "artifact"
    return found if found.is_dir() and not (model / "manifest.json").exists() else model
