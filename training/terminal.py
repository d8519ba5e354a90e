"""What the commands share: options, and progress on stderr; results go to stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.contract.commands import Parts
from serve.contract.validation import refuse_existing
from serve.storage.bucket import place


def anywhere(**options: Any) -> Any:
    """Return a typer option for a path on disk or in a bucket (s3://BUCKET/KEY)."""
    return typer.Option(parser=place, metavar="PATH", **options)


SurfaceName = Annotated[str, typer.Option(help="Name of a shipped surface, or path of a TOML file.")]
LogFolder = Annotated[Path, anywhere(help="The log to read: a folder, or s3://BUCKET/KEY.")]
NewLog = Annotated[Path, anywhere(help="The log to write: a folder or s3://BUCKET/KEY; must not exist.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed and rows give the same model.")]
Models = Annotated[Path, anywhere(help="Folder of the published models, or s3://BUCKET/KEY.")]
PUBLISHED = Path("var/models")


def artifact_of(model: Path | None) -> Path | None:
    """Return the artifact that an option names: the path itself, or that in a search's folder."""
    if model is None or (model / "manifest.json").exists() or not (model / "artifact").is_dir():
        return model
    return model / "artifact"


Model = Annotated[Path, anywhere(callback=artifact_of, help="Folder of an artifact or of a search.")]


def new_folder(out: Path | None) -> Path | None:
    """Return the path that an option names, and refuse it if it exists."""
    if out is not None:
        refuse_existing(out)
    return out


ReportFolder = Annotated[
    Path | None, typer.Option(callback=new_folder, help="New folder for report.json and report.html.")
]


def print_progress(message: str) -> None:
    """Print a line of progress on stderr."""
    print(message, file=sys.stderr)


# Announces the parts of a long command (features, trials, …) and their durations.
PARTS = Parts(print_progress)


def decimal(value: float | None) -> str:
    """Format a measure with four decimals; a dash where it is None."""
    return "–" if value is None else f"{value:.4f}"


def longer(times: float) -> str:
    """Return how much more log something takes, in words: `times` this log, of two digits."""
    return "over 100 times this log" if times > 100 else f"about {max(times, 1.1):.2g} times this log"


class ProgressLines:
    """Prints progress on stderr: one line for each tenth that is done, such as `fit 30 %`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._tenths = 0

    def __call__(self, share: float) -> None:
        """Report the share that is done."""
        if int(share * 10) > self._tenths:
            self._tenths = int(share * 10)
            print_progress(f"{self._what} {self._tenths * 10} %")
