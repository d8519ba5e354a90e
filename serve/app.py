"""Application builder that `cluster.yaml` names as `serve.app:build`."""

import os
from pathlib import Path
from typing import Any

from ray.serve import Application

from serve.config.settings import AppArgs
from serve.deployments import FeatureFetch, Ingest, Scorer


def build(args: dict[str, Any]) -> Application:
    """Build `FeatureFetch` → `Scorer` and `Ingest` from the `args` of `cluster.yaml`.

    Paths in `args` are relative to the folder of `cluster.yaml`: to `$TABRANK_HOME` if it is set,
    as `python -m serve up` does, else to the working directory.
    """
    base = os.environ.get("TABRANK_HOME", os.getcwd())
    # Ray's own commands deploy a file whose `args` have no text of the surface. All replicas then
    # use the text as it is now.
    settings = AppArgs.from_mapping(args, "args").pinned(Path(base))
    scorer = Scorer.bind(settings, base)  # type: ignore[attr-defined]
    ingest = Ingest.bind(settings, base)  # type: ignore[attr-defined]
    return FeatureFetch.bind(settings, base, scorer, ingest)  # type: ignore[attr-defined]
