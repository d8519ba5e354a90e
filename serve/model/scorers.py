"""Scorers: turn a feature matrix into predictions of one artifact, on ONNX Runtime or torch.

A prediction is the expected amount of an outcome as a share of its cap. For an event it is the
probability.

Letters: R rows, F numeric columns, K category columns, O outcomes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from serve.contract.errors import ArtifactRefused
from serve.features.slots import F32, I64, U64
from serve.model.artifact import Artifact
from serve.model.artifact import load as load_artifact
from serve.model.folding import fold
from serve.model.graph import Calibration, forward
from serve.model.onnx_validator import validate

Backend = Literal["onnx", "torch"]
Encoded = tuple[F32, F32, I64]

TOLERANCE = 1e-5
"""Largest allowed difference of a golden score from the trained network's."""

MAX_RESIDUAL = 1e-6
"""Largest deviation of a row's mask sums from 1; above it, the row is scored with a sort."""

MAX_GOLDEN = 10_000
"""Limits the golden rows; an artifact has 64."""


class Scorer:
    """Scores rows; the content of a row never changes a bit of another row's score.

    For nearly all rows, the fixed passes of `serve.model.masks` suffice. The others are scored
    again with a sort. `num_reruns` counts the batches with such rows.
    """

    # A GPU always sorts, because a sort is one launch, and a pass takes several.
    always_sorts = False

    def __init__(self, artifact: Artifact) -> None:
        self._encoder = artifact.encoder
        self.outcomes = artifact.outcomes
        self.num_reruns = 0

    def score(self, numeric: F32, category: U64) -> F32:
        """Return shares [R, O] for numeric f32 [R, F] and category u64 [R, K].

        A missing number is NaN, and a missing category is 0.
        """
        parts = self._encoder.encode(numeric, category)
        if not len(numeric):
            return np.empty((0, len(self.outcomes)), np.float32)
        shares, residual = self._run(parts, exact=self.always_sorts)
        settled = residual <= MAX_RESIDUAL
        if not settled.all():
            self.num_reruns += 1
            shares = np.where(settled[:, None], shares, self._run(parts, exact=True)[0])
        return shares

    def score_sorting(self, numeric: F32, category: U64) -> F32:
        """Return shares [R, O]; every row is scored with a sort."""
        return self._run(self._encoder.encode(numeric, category), exact=True)[0]

    def _run(self, parts: Encoded, *, exact: bool) -> tuple[F32, F32]:
        """Return shares [R, O] and residuals [R]; `exact` sorts. There is at least one row."""
        raise NotImplementedError


class OnnxScorer(Scorer):
    """ONNX Runtime on one CPU thread; more replicas give more speed."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self._passes = _session(artifact, "model.onnx")
        self._sorting = _session(artifact, "model_sorting.onnx")

    def _run(self, parts: Encoded, *, exact: bool) -> tuple[F32, F32]:
        arrays: tuple[NDArray[Any], ...] = parts
        feeds = {name: array for name, array in zip(_INPUTS, arrays, strict=True) if array.shape[1]}
        session = self._sorting if exact else self._passes
        shares, residual = session.run(OUTPUTS, feeds)
        return shares, residual


class TorchScorer(Scorer):
    """Torch on a GPU, or on the CPU if there is no GPU."""

    def __init__(self, artifact: Artifact, device: str | None = None) -> None:
        import torch

        from serve.model.torch_ops import TorchOps

        super().__init__(artifact)
        self._torch = torch
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.always_sorts = self._device.type != "cpu"
        self._ops = TorchOps(self._device)
        self._folded = fold(
            load_safetensors(artifact.read("weights.safetensors")),
            artifact.encoder,
            artifact.manifest["network"],
            [Calibration(**about["calibration"]) for about in artifact.manifest["outcomes"].values()],
        )

    def _run(self, parts: Encoded, *, exact: bool) -> tuple[F32, F32]:
        with self._torch.inference_mode():
            # Copy the arrays: torch warns about read-only ones, such as those received over a
            # connection.
            inputs = [self._torch.tensor(part, device=self._device) for part in parts]
            shares, residual = forward(self._ops, self._folded, *inputs, exact=exact)
            scores: F32 = shares.cpu().numpy()
            return scores, np.zeros(len(scores), np.float32) if exact else residual.cpu().numpy()


def load_scorer(folder: Path, backend: Literal["onnx", "torch"], device: str | None = None) -> Scorer:
    """Return a scorer of the artifact in `folder`, with files and golden scores verified.

    Raises:
        ArtifactRefused: the artifact is not whole, or its golden rows score differently.
    """
    artifact = load_artifact(folder)
    try:
        scorer = OnnxScorer(artifact) if backend == "onnx" else TorchScorer(artifact, device)
    except ArtifactRefused:
        raise
    # Reading weights, or allocating memory for them, can fail in any way. The artifact must not
    # serve then.
    except Exception as error:
        raise ArtifactRefused(f"artifact {folder}: cannot be scored with: {error}; fit again") from error
    _check_golden(artifact, scorer)
    return scorer


_INPUTS, OUTPUTS = ("numeric", "hot", "index"), ["shares", "residual"]


def one_thread_session(model: bytes) -> Any:
    """Return a session of ONNX Runtime that scores with this graph on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A fallback would print a message.
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _session(artifact: Artifact, name: str) -> Any:
    model = artifact.read(name)
    try:
        validate(model)
    except ValueError as error:
        raise ArtifactRefused(
            f"artifact {artifact.path}: {name} is not a supported graph: it {error}; export it again"
        ) from error
    session = one_thread_session(model)
    unknown = {value.name for value in session.get_inputs()} - set(_INPUTS)
    if unknown or [value.name for value in session.get_outputs()] != OUTPUTS:
        raise ArtifactRefused(f"artifact {artifact.path}: {name} is not a supported graph; export it again")
    return session


def _check_golden(artifact: Artifact, scorer: Scorer) -> None:
    where = f"artifact {artifact.path}: golden.safetensors"
    try:
        golden = load_safetensors(artifact.read("golden.safetensors"))
        numeric, category, want = golden["numeric"], golden["category"], golden["score"]
    except (SafetensorError, KeyError) as error:
        raise ArtifactRefused(f"{where}: cannot be read: {error}") from error
    if (
        want.dtype != np.float32
        or want.shape[1:] != (len(artifact.outcomes),)
        or not 0 < len(want) <= MAX_GOLDEN
    ):
        raise ArtifactRefused(
            f"{where}: score is {want.dtype} {list(want.shape)}; it must be float32 of 1 to {MAX_GOLDEN:,} rows with "
            f"a column for each of the outcomes {list(artifact.outcomes)}; fit again"
        )
    if not numeric.shape[:1] == category.shape[:1] == want.shape[:1]:
        raise ArtifactRefused(f"{where}: not as many rows as scores; fit again")
    for score in (scorer.score, scorer.score_sorting):
        try:
            found = score(numeric, category)
            if found.shape != want.shape:
                raise ValueError(f"{list(found.shape)} scores for {len(want)} rows")
        # The artifact must not serve, whatever the exception is.
        except Exception as error:
            raise ArtifactRefused(f"{where}: cannot be scored: {type(error).__name__}: {error}") from error
        off = np.argwhere(~(np.abs(found - want) <= TOLERANCE))
        if len(off):
            row, column = off[0]
            raise ArtifactRefused(
                f"{where}: row {row} scores {found[row, column]:.7f} here and scored {want[row, column]:.7f} when the "
                f"artifact was made ({len(off)} of {want.size} scores differ by over {TOLERANCE}); fit again"
            )
