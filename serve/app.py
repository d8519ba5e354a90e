"""The application builder that `cluster.yaml` names: `serve.app:build`."""

import os
from typing import Any

from ray.serve import Application

from serve.config.settings import AppArgs
from serve.deployments import FeatureFetch, Ingest, Scorer


def build(args: dict[str, Any]) -> Application:
    """`FeatureFetch` → `Scorer` and `Ingest`, from the `args` of `cluster.yaml`.

    Paths in them are relative to the folder of `cluster.yaml`: `$TABRANK_HOME` where it is set (as
    `python -m serve up` does), else the folder that the command runs in.
    """
    base = os.environ.get("TABRANK_HOME", os.getcwd())
    settings = AppArgs.from_mapping(args, "args")
    scorer = Scorer.bind(settings, base)  # type: ignore[attr-defined]
    ingest = Ingest.bind(settings, base)  # type: ignore[attr-defined]
    return FeatureFetch.bind(settings, base, scorer, ingest)  # type: ignore[attr-defined]
