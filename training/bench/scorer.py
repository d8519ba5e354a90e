"""Measure how many candidates an artifact scores per second, with ONNX Runtime and with torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as load_safetensors

from serve.features.matrix import Matrix
from serve.model.artifact import load as load_artifact
from serve.model.scorers import load_scorer

# How many rows to score at once: those of one request, of 8 and of 32 requests of 55 candidates.
SIZES = (55, 440, 1760)
ROUNDS = 15
# How long a backend runs in each round. This is long compared with the timer's resolution, and
# short compared with slow phases of the machine, so that these affect both backends alike.
ROUND_S = 0.03


def bench_scorer(model: Path, *, sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure the service's two backends, each on one core, on rows of the artifact.

    Where torch finds a GPU, it scores there.

    Returns:
        `device`, where torch scored; `version` of the artifact; `columns`, the number of the
        network's inputs; `candidates_per_s`, for each size those of `onnx` and `torch`; and
        `max_difference` between the two backends' scores.

    Raises:
        TabrankError: the artifact is invalid.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    artifact = load_artifact(model)
    golden = load_safetensors(artifact.read("golden.safetensors"))
    at = np.random.default_rng(0).integers(0, len(golden["score"]), max(sizes))
    matrix = Matrix(golden["numeric"][at], golden["category"][at])
    scorers = {"onnx": load_scorer(model, "onnx"), "torch": load_scorer(model, "torch", device)}
    speeds = {}
    for size in sizes:
        rows = matrix.rows(slice(size))
        runs = {name: partial(one.score, rows.numeric, rows.category) for name, one in scorers.items()}
        num_runs = {name: max(1, int(ROUND_S / timeit(run, number=1))) for name, run in runs.items()}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                taken[name].append(timeit(run, number=num_runs[name]) / num_runs[name])
        speeds[str(size)] = {name: size / statistics.median(seconds) for name, seconds in taken.items()}
    by_onnx, by_torch = (scorer.score(matrix.numeric, matrix.category) for scorer in scorers.values())
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "version": artifact.version,
        "columns": len(artifact.encoder.input_names),
        "candidates_per_s": speeds,
        "max_difference": float(np.abs(by_onnx - by_torch).max()),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text, with a line for each number of rows."""
    lines = [f"{result['version']}: {result['columns']} columns; candidates/s, torch on {result['device']}"]
    lines.append(f"{'rows':>6}{'onnx':>12}{'torch':>12}")
    for size, speed in result["candidates_per_s"].items():
        lines.append(f"{size:>6}{speed['onnx']:>12,.0f}{speed['torch']:>12,.0f}")
    return "\n".join([*lines, f"the scores differ by at most {result['max_difference']:.1e}"])
