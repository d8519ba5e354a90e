"""The commands `python -m training search` and `python -m training refresh`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from serve.contract.commands import Json, answer
from serve.contract.validation import duration_ms
from serve.features.surface import load_surface
from serve.model.artifact import current
from serve.report.rows import columns
from serve.storage.bucket import is_bucket
from training.terminal import PARTS, PUBLISHED, LogFolder, Models, SurfaceName, anywhere

Budget = Annotated[str, typer.Option(help="Total time of the search, such as 5m, 30m or 2h.")]
MostUs = Annotated[
    float | None,
    typer.Option("--max-us-per-candidate", help="Most µs to score a candidate, on a core of this machine."),
]
# Networks that teach the winner, beside LightGBM.
NUM_TEACHERS = 4
# Exit code of a `refresh` after which the current model stays. Nothing has failed: a night without
# a better model is a normal one.
KEPT = 3


def search(
    surface: SurfaceName,
    log: LogFolder,
    out: Annotated[Path, typer.Option(help="Folder of the search; a killed search resumes there.")],
    budget: Budget = "30m",
    max_us: MostUs = None,
    models: Annotated[
        Path | None,
        anywhere(help="Start from the current model in this folder; publish the winner if it passes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for the best network within a time budget and a serving cost.

    The winner is written to OUT/artifact, and its report to OUT/artifact/report.html. Exit code 1:
    the winner does not pass. The last lines say why.
    """
    found = _search(surface, log, out, budget, as_json, max_us=max_us, models=models)
    raise typer.Exit(0 if found["passed"] else 1)


def refresh(
    surface: SurfaceName,
    log: LogFolder,
    days: Annotated[float | None, typer.Option(help="Only use the newest days of the log.")] = None,
    budget: Budget = "30m",
    max_us: MostUs = None,
    models: Models = PUBLISHED,
) -> None:
    """Search for a successor of the current model, and publish the winner if it passes.

    The search starts from the current model's settings. The winner passes if it beats the popular
    order and the surface's rule by two standard errors. On rows that neither has seen, it must also
    not be worse than the current model by more than 1 %, with one standard error to spare. The
    search's folder is MODELS.refresh, and replaces that of a finished one. Exit code 0: the winner
    is published. 3: it does not pass, so the current model stays, as on most nights. 1: it does not
    pass, and there is no current model, or a column may know the future. 2: the command failed.
    """
    # The search needs a disk, so that of models in a bucket is beside their default.
    out = Path(f"{PUBLISHED if is_bucket(str(models)) else models}.refresh")
    found = _search(surface, log, out, budget, False, max_us=max_us, models=models, days=days, restart=True)
    is_kept = current(models) is not None and not found["suspects"]
    raise typer.Exit(0 if found["passed"] else KEPT if is_kept else 1)


def not_published(out: Path, models: Path, *, is_doubted: bool = False) -> str:
    """Return in words what the service ranks by, as the winner did not pass.

    If a column may know the future (`is_doubted`), it cannot be published by hand either.
    """
    publish = ["python", "-m", "training", "publish", "--model", str(out), "--models", str(models)]
    popular = "the service ranks by popularity" + f", unless you run {shlex.join(publish)}" * (not is_doubted)
    return f"not published: {'the current model stays' if current(models) else popular}"


def _search(surface: str, log: Path, out: Path, budget: str, as_json: bool, **given: Any) -> dict[str, Any]:
    """Search with the settings `given`, print the answer and return it."""
    from training.evaluation.verdict import leaderboard
    from training.search.search import search as run
    from training.search.task import SearchSettings

    budget_s = duration_ms(budget, "--budget") / 1e3
    settings = SearchSettings(budget_s, num_teachers=NUM_TEACHERS, **given)
    found = run(load_surface(surface), log, out, settings)
    PARTS.end()
    lines = [found["headline"], found["verdict"]]
    lines.append("on the validation rows, which chose the winner:")
    lines.append(columns(leaderboard(found, most=10)))
    lines += [f"NOT passed: {reason}" for reason in found["reasons"]] or ["passed"]
    if given["models"] and not found["passed"]:
        lines.append(not_published(out, given["models"], is_doubted=bool(found["suspects"])))
    if found["test_looks"] > 1:
        lines.append(f"the test rows were used {found['test_looks']} times: measures on them are optimistic")
    if found["published"]:
        lines.append(f"{found['version']} is published{' and' if found['promoted'] else ', not'} current")
    lines.append(found["artifact"])
    answer(found, as_json, "\n".join(lines))
    return found
