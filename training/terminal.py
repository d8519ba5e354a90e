"""Terminal conventions of commands: shared options, result on stdout, progress on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.contract.commands import Parts
from serve.storage.bucket import place


def anywhere(**options: Any) -> Any:
    """Return an option for a path on the disk or in a bucket."""
    return typer.Option(parser=place, metavar="PATH", **options)


SurfaceName = Annotated[str, typer.Option(help="Name of a shipped surface, or path of a TOML file.")]
LogFolder = Annotated[Path, anywhere(help="A log: a folder of Parquet, or s3://BUCKET/KEY.")]
NewLog = Annotated[Path, anywhere(help="The log to write, or s3://BUCKET/KEY; must not exist.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and order; equal seeds give equal models.")]
Models = Annotated[Path, anywhere(help="The folder of published artifacts, or s3://BUCKET/KEY.")]
PUBLISHED = Path("var/models")


def artifact_of(model: Path | None) -> Path | None:
    """Return the artifact that an option names: the path itself, or that of a search's folder."""
    if model is None or (model / "manifest.json").exists() or not (model / "artifact").is_dir():
        return model
    return model / "artifact"


Model = Annotated[Path, anywhere(callback=artifact_of, help="An artifact, or the folder of a search.")]


def print_progress(message: str) -> None:
    """Print a line of progress on stderr."""
    print(message, file=sys.stderr)


# The parts of a command of this package.
PARTS = Parts(print_progress)


def decimal(value: float | None) -> str:
    """Format a measure with four decimals; a dash where it is None."""
    return "–" if value is None else f"{value:.4f}"


class ProgressLines:
    """Progress from 0 to 1 on stderr: a line every tenth."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tenths = 0

    def __call__(self, share: float) -> None:
        """Report the share that is done."""
        if int(share * 10) > self._tenths:
            self._tenths = int(share * 10)
            print_progress(f"{self._what} {self._tenths * 10} %")
