"""`python -m serve models`: list the published versions, and change which of them ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from serve.contract.commands import Address, AnyRunFolder, Json, answer
from serve.contract.errors import TabrankError
from serve.storage.bucket import place

models = typer.Typer(no_args_is_help=True)
Folder = Annotated[
    Path, typer.Option("--models", parser=place, metavar="PATH", help="A folder, or s3://BUCKET/KEY.")
]
Version = Annotated[str, typer.Argument(help="A published version; `list` names them.")]
Reason = Annotated[str, typer.Option(help="The reason, stored with the version.")]
MODELS = Path("var/models")
BY_HAND = "by hand"


@models.command("list")
def show(folder: Folder = MODELS, as_json: Json = False) -> None:
    """List each published version with its state, date and metrics."""
    from serve.operate.rollout.tables import versions
    from serve.rollout.registry import ModelRegistry

    found = ModelRegistry(folder).table()
    answer({"versions": found}, as_json, versions(found) or f"{folder}: no version is published")


@models.command()
def promote(version: Version, folder: Folder = MODELS) -> None:
    """Let a version rank for arms with the scorer `current`; the service loads it within 1 s."""
    from serve.rollout.registry import ModelRegistry

    releases = ModelRegistry(folder)
    misfit = releases.misfit(version)
    was = releases.promote(version)
    if misfit:
        print(misfit, file=sys.stderr)
    before = "it was already" if was == version else f"before: {was}"
    print(f"{version} is current{f'; {before}' if was else ''}")


@models.command()
def rollback(reason: Reason = BY_HAND, folder: Folder = MODELS) -> None:
    """Go back from the current version to the good one before it. Exit code 1: there is none."""
    from serve.rollout.registry import ModelRegistry, NothingBefore

    releases = ModelRegistry(folder)
    was = releases.current
    try:
        now = releases.roll_back(None, reason)
    except NothingBefore as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    if now is None:
        raise TabrankError(f"models {folder}: no version is current; promote one")
    print(f"{now} is current again; {was}: {reason}")


@models.command()
def canary(
    version: Annotated[str | None, typer.Argument(help="A published version; `list` names them.")] = None,
    end: Annotated[bool, typer.Option("--end", help="End the canary.")] = False,
    reason: Reason = BY_HAND,
    folder: Folder = MODELS,
) -> None:
    """Let a version rank for arms with the scorer `canary`; --end returns them to `current`."""
    from serve.rollout.registry import ModelRegistry

    if (version is None) != end:
        raise TabrankError("models canary: name the version, or end it with --end alone")
    releases = ModelRegistry(folder)
    if version is None:
        print(f"{releases.end_canary(reason)} has ended as the canary")
        return
    releases.start_canary(version)
    print(
        f"{version} is the canary: it ranks for the arms whose scorer is canary (their share: cluster.yaml)"
    )


@models.command()
def shift(run: AnyRunFolder = None, address: Address = None) -> None:
    """Compare the scores of two versions on rows that the running service scored with both.

    Such rows come from the shadow (`user_config.shadow`), the canary, and a version that was
    promoted recently. They count since the start of each replica.
    """
    from serve.operate.rollout.tables import read_shifts, shifts
    from serve.operate.status.scrape import read_pages
    from serve.operate.status.vitals import metrics_pages

    found = read_shifts(read_pages(metrics_pages(run, address)))
    nothing = (
        "no rows were scored by two versions yet: there is no canary, no shadow and no newly promoted version"
    )
    print(shifts(found) or nothing)
