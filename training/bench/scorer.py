"""Measure scoring speed: candidates/s of each way to score a model."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as load_safetensors

from serve.contract.errors import TabrankError
from serve.features.matrix import Matrix
from serve.model.artifact import load as load_artifact
from serve.operate.host.machine import describe_machine
from training.bench.contenders import Contender, Contenders, references

# Rows to score at once: those of one request, and about those of 8 and 32 requests.
SIZES = (55, 440, 1760)
# Size at which ours is compared with `predict_proba`.
CHECKED = 440
ROUNDS = 15
# Time that a contender runs in each round: long against the timer's resolution, and short against
# slow phases of the machine, which the rounds then spread over all contenders.
ROUND_S = 0.03


def bench_scorer(
    model: Path | None = None,
    *,
    device: str = "cpu",
    sizes: tuple[int, ...] = SIZES,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure candidates/s of the ways to score `model` (default: `REFERENCES`).

    They have one thread of the CPU each, and those of torch also the device.

    Returns:
        `machine`, `device`, `seconds`, `models` (one result each), and the keys of the first
        result: `model`, `network`, `features`, `columns` (of the network), `rows` (size →
        contender → candidates/s), `ratio_vs_predict_proba` (ours on the device, at 440 rows or
        else at the largest size) and `max_difference` (of each contender's probabilities from ours,
        over all rows). The contenders are those of `Contenders.on`.

    Raises:
        TabrankError: the device is neither cpu nor cuda, or torch has no CUDA device.
    """
    if device not in ("cpu", "cuda"):
        raise TabrankError(f"--device {device}: must be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise TabrankError(
            "--device cuda: torch finds no CUDA device; install a GPU's driver and a CUDA build of torch, or "
            "measure on cpu"
        )
    begun = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tabrank-bench-") as temporary:
        folders = {str(model): model} if model else references(Path(temporary))
        results = []
        for name, folder in folders.items():
            progress(f"bench scorer: {name}")
            results.append({"model": name, **_measure(folder, device, sizes, rounds)})
    return {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "seconds": round(time.perf_counter() - begun, 1),
        **results[0],
        "models": results,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as text: for each model a line a contender, candidates/s by size."""
    lines = []
    for found in result["models"]:
        lines.append(
            f"{found['model']}: {found['columns']} columns; candidates/s on {result['device']}, one core, at "
            f"{' / '.join(found['rows'])} rows, and the largest difference from ours"
        )
        for name, difference in found["max_difference"].items():
            speeds = "".join(f"{speeds[name]:>12,.0f}" for speeds in found["rows"].values())
            lines.append(f"  {name:<14}{speeds}   {difference:.1e}")
        lines.append(f"  ours is {found['ratio_vs_predict_proba']:.1f} times predict_proba")
    return "\n".join(lines)


def _measure(folder: Path, device: str, sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    artifact = load_artifact(folder)
    encoder = artifact.encoder
    rows = load_safetensors(artifact.read("golden.safetensors"))
    at = np.random.default_rng(0).integers(0, len(rows["score"]), max(sizes))
    matrix = Matrix(rows["numeric"][at], rows["category"][at])
    contenders = Contenders(artifact, device)
    speeds, difference = {}, {}
    for size in sizes:
        ready = contenders.on(matrix.rows(slice(size)))
        speeds[str(size)] = {name: size / s for name, s in _seconds(ready, rounds).items()}
        found = {name: contender.probability(contender.run()) for name, contender in ready.items()}
        difference = {name: float(np.abs(p - found["ours"]).max()) for name, p in found.items()}
    checked = speeds[str(CHECKED if CHECKED in sizes else max(sizes))]
    return {
        "network": artifact.manifest["network"],
        "features": len(encoder.numeric) + len(encoder.single) + len(encoder.multi),
        "columns": len(encoder.input_names),
        "rows": speeds,
        "ratio_vs_predict_proba": checked["ours" if device == "cpu" else "ours_torch"]
        / checked["predict_proba"],
        "max_difference": difference,
    }


def _seconds(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """Return the seconds of one run of each contender: the median over alternating rounds."""
    num_runs = {}
    for name, contender in contenders.items():
        contender.run()
        num_runs[name] = max(1, int(ROUND_S / timeit(contender.run, number=1)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            taken[name].append(timeit(contender.run, number=num_runs[name]) / num_runs[name])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
