"""Inference graph: the trained TabNet in eval mode, with all constants folded into its matrices.

`fold` turns trained weights into matrices, and `forward` applies them. `forward` is written once,
over an `Ops` namespace: `serve.model.torch_ops` computes with it, `training.network.export` builds
ONNX nodes with it.

Letters: R rows, F numeric columns, I missing indicators, V multi-hot columns, K1 single category
columns, G = F + I + V + K1 columns that the masks choose from, D of them after the embedding, H
hidden units. Arrays are laid out as [columns, R]: sums over columns and thresholds per row then run
along whole rows of memory, two to four times as fast in ONNX Runtime as [R, columns]. The cost of a
small batch is per node (0.7 µs), that of a large batch per pass over [G, R]; the graph minimises
both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.model.encoder import CLIP, Encoder
from serve.model.masks import MaskType, mask
from serve.model.ops import LARGE, Ops

T = TypeVar("T")
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_BATCH_NORM_EPSILON = 1e-5
_HALVING = math.sqrt(0.5)
"""TabNet scales each residual sum by this factor, to keep the variance."""


@dataclass(frozen=True)
class Calibration:
    """Platt's map from logits to probabilities: sigmoid(a · logit + b); a > 0 keeps the order."""

    a: float = 1.0
    b: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.a) and math.isfinite(self.b) and self.a > 0):
            raise TabrankError(f"calibration: a {self.a} and b {self.b} must be finite, and a above 0")


@dataclass(frozen=True)
class GatedLayer:
    """Gated linear unit with its batch norm folded in: (value · x + …) · sigmoid(gate · x + …).

    Matrices are [H, in], biases [H, 1].
    """

    value: F32
    value_bias: F32
    gate: F32
    gate_bias: F32


@dataclass(frozen=True)
class DecisionStep:
    """One decision step: attention [G, H] that selects columns, and the layers that read them."""

    attention: F32
    attention_bias: F32
    layers: tuple[GatedLayer, ...]


@dataclass(frozen=True)
class Embedding:
    """Single category columns of one embedding size e: positions, first table rows, table [N, e].

    A mask value is divided among the e columns of a category, so the tables are divided by e.
    """

    columns: I64
    offsets: I64
    table: F32


@dataclass(frozen=True)
class Folded:
    """The constants of `forward`. Numeric columns are reordered: first `logged`, then `plain`."""

    logged: I64
    plain: I64
    mean: F32
    scale: F32
    indicators: I64
    num_hot: int
    dense_scale: F32
    dense_shift: F32
    embedded: tuple[Embedding, ...]
    num_columns: int
    spread: I64 | None
    splitter: tuple[GatedLayer, ...]
    steps: tuple[DecisionStep, ...]
    gamma: float
    mask_type: MaskType
    output: F32
    output_bias: F32


def fold(
    weights: Mapping[str, NDArray[Any]], encoder: Encoder, config: Mapping[str, Any], calibration: Calibration
) -> Folded:
    """Fold a TabNet's state dict, in float64.

    Batch norms are folded into the adjacent linear layers and the embedding tables; TabNet's
    residual scale into the following layers; the two halves of the hidden units and the halved
    logits of entmax into padded and scaled matrices; the calibration into the output.

    Args:
        weights: the state dict of `training.network.network.Network.tabnet`.
        encoder: the columns that the network was trained on.
        config: the fields of `training.network.network.NetworkConfig`.
        calibration: fitted on the network's logits.

    Raises:
        TabrankError: a weight is missing or not finite.
    """
    try:
        return _fold(_Weights(weights), encoder, config, calibration)
    except KeyError as error:
        raise TabrankError(
            f"network: {error.args[0]!r} is missing; was it exported by this release?"
        ) from error


def forward(ops: Ops[T], folded: Folded, numeric: T, hot: T, index: T, *, exact: bool) -> tuple[T, T]:
    """Score numeric f32 [R, F], hot f32 [R, V], index i64 [R, K1] → probability [R], residual [R].

    The residual is the largest deviation of a mask's sum from 1 in the row (NaN counts as 1). Above
    1e-6 the passes of `serve.model.masks` did not suffice, and the row must be scored with `exact`,
    which sorts. Each row has its own residual, so no row affects how another one is scored.
    Inputs without columns are not read.
    """
    x = _inputs(ops, folded, numeric, hot, index)
    hidden = _transform(ops, folded.splitter, x)
    gamma = ops.scalar(folded.gamma)
    prior: T | None = None
    chosen: T | None = None
    sums: list[T] = []
    logit = ops.constant(folded.output_bias)
    for step in folded.steps:
        logits = ops.linear(ops.constant(step.attention), hidden, ops.constant(step.attention_bias))
        if chosen is not None:
            left = ops.sub(gamma, chosen)
            prior = left if prior is None else ops.mul(prior, left)
            logits = ops.mul(logits, prior)
        chosen, total = mask(ops, folded.mask_type, logits, folded.num_columns, exact=exact)
        sums.append(total)
        spread = chosen if folded.spread is None else ops.take(chosen, folded.spread)
        hidden = _transform(ops, step.layers, ops.mul(spread, x))
        logit = ops.linear(ops.constant(folded.output), ops.relu(hidden), logit)
    return ops.flatten(ops.sigmoid(logit)), _residual(ops, sums)


def _inputs(ops: Ops[T], folded: Folded, numeric: T, hot: T, index: T) -> T:
    """Compute `training.network.network.Network.inputs`, embedded and batch normed: → [D, R]."""
    parts: list[T] = []
    if len(folded.mean):
        value = _transformed(ops, folded, ops.transpose(numeric))
        missing = ops.is_nan(value)
        mean = ops.constant(folded.mean)
        value = ops.sub(ops.where(missing, mean, value), mean)
        parts.append(ops.clip(ops.mul(value, ops.constant(folded.scale)), -CLIP, CLIP))
        if len(folded.indicators):
            parts.append(ops.take(ops.to_float(missing), folded.indicators))
    if folded.num_hot:
        parts.append(ops.transpose(hot))
    if parts:
        dense = ops.concat(parts)
        dense = ops.mul(dense, ops.constant(folded.dense_scale))
        parts = [ops.add(dense, ops.constant(folded.dense_shift))]
    for group in folded.embedded:
        at = ops.add(ops.take(ops.transpose(index), group.columns), ops.constant(group.offsets))
        parts.append(ops.embed(ops.constant(group.table), at))
    return ops.concat(parts)


def _transformed(ops: Ops[T], folded: Folded, numeric: T) -> T:
    """Return the numeric columns [F, R] in the graph's order, after log1p; NaN stays NaN."""
    if not len(folded.logged):
        return numeric
    logged = ops.take(numeric, folded.logged)
    size = ops.log(ops.add(ops.abs(logged), ops.scalar(1.0)))
    # ONNX Runtime computes the operator Sign slowly.
    sign = ops.clip(ops.mul(logged, ops.scalar(LARGE)), -1.0, 1.0)
    value = ops.mul(size, sign)
    return ops.concat([value, ops.take(numeric, folded.plain)]) if len(folded.plain) else value


def _transform(ops: Ops[T], layers: Sequence[GatedLayer], x: T) -> T:
    """Apply a feature transformer, [in, R] → [H, R]: gated layers with skips after the first."""
    hidden: T | None = None
    for layer in layers:
        source = x if hidden is None else hidden
        value = ops.linear(ops.constant(layer.value), source, ops.constant(layer.value_bias))
        gate = ops.linear(ops.constant(layer.gate), source, ops.constant(layer.gate_bias))
        gated = ops.mul(value, ops.sigmoid(gate))
        hidden = gated if hidden is None else ops.add(hidden, gated)
    assert hidden is not None
    return hidden


def _residual(ops: Ops[T], sums: Sequence[T]) -> T:
    one = ops.scalar(1.0)
    gap = ops.abs(ops.sub(ops.concat(sums), one))
    # Backends treat NaN in a maximum differently.
    return ops.flatten(ops.max(ops.where(ops.is_nan(gap), one, gap)))


class _Weights:
    """A state dict, read as float64."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> F64:
        value = np.asarray(self._weights[name], np.float64)
        if not np.isfinite(value).all():
            raise TabrankError(f"network: weight {name!r} is not finite; the training diverged, fit again")
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def batch_norm(self, name: str) -> tuple[F64, F64]:
        """Return (scale, shift) of a batch norm in eval mode."""
        scale = self[f"{name}.weight"] / np.sqrt(self[f"{name}.running_var"] + _BATCH_NORM_EPSILON)
        return scale, self[f"{name}.bias"] - scale * self[f"{name}.running_mean"]


def _fold(weights: _Weights, encoder: Encoder, config: Mapping[str, Any], calibration: Calibration) -> Folded:
    width, mask_type = int(config["width"]), config["mask_type"]
    numeric = encoder.numeric
    order = sorted(range(len(numeric)), key=lambda i: numeric[i].transform != "log1p")
    dense = [*order, *range(len(numeric), len(numeric) + len(encoder.indicators) + encoder.num_hot)]

    scale, shift = weights.batch_norm("tabnet.encoder.initial_bn")
    sizes = [column.embedding for column in encoder.single]
    starts = len(dense) + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    embedded, columns, chosen = [], list(dense), list(dense)
    spread = list(range(len(dense)))
    shares = [1.0] * len(dense)
    for size in sorted(set(sizes)):
        members = [k for k in range(len(sizes)) if sizes[k] == size]
        tables = []
        for k in members:
            own = np.arange(starts[k], starts[k] + size)
            tables.append((weights[f"embedder.embeddings.{k}.weight"] * scale[own] + shift[own]) / size)
            columns.extend(own)
            spread.extend([len(chosen)] * size)
            shares.extend([size] * size)
            chosen.append(len(dense) + k)
        offsets = np.cumsum([0, *(len(table) for table in tables[:-1])])
        embedded.append(
            Embedding(np.array(members), offsets[:, None].astype(np.int64), _f32(np.concatenate(tables)))
        )

    num_layers = int(config["n_shared"]) + int(config["n_independent"])
    residual_scale = _HALVING ** (num_layers - 1)
    attention_scale = residual_scale * (0.5 if mask_type == "entmax" else 1.0)
    steps = []
    for step in range(int(config["n_steps"])):
        prefix = f"tabnet.encoder.att_transformers.{step}"
        norm, bias = weights.batch_norm(f"{prefix}.bn.bn")
        attention = np.zeros((len(chosen), 2 * width))
        attention[:, width:] = (weights[f"{prefix}.fc.weight"] * norm[:, None])[chosen] * attention_scale
        bias = bias[chosen, None] * (attention_scale / residual_scale)
        layers = _layers(weights, f"tabnet.encoder.feat_transformers.{step}", config, columns)
        steps.append(DecisionStep(_f32(attention), _f32(bias), layers))
    output = np.zeros((1, 2 * width))
    output[:, :width] = weights["tabnet.final_mapping.weight"] * residual_scale * calibration.a
    return Folded(
        logged=np.array([i for i in order if numeric[i].transform == "log1p"], np.int64),
        plain=np.array([i for i in order if numeric[i].transform != "log1p"], np.int64),
        mean=_f32([[numeric[i].mean] for i in order]),
        scale=_f32([[1.0 / numeric[i].std] for i in order]),
        indicators=np.array([order.index(i) for i in encoder.indicators], np.int64),
        num_hot=encoder.num_hot,
        dense_scale=_f32(scale[dense][:, None]),
        dense_shift=_f32(shift[dense][:, None]),
        embedded=tuple(embedded),
        num_columns=len(chosen),
        spread=None if len(columns) == len(chosen) else np.array(spread, np.int64),
        splitter=_layers(weights, "tabnet.encoder.initial_splitter", config, columns, np.array(shares)),
        steps=tuple(steps),
        gamma=float(config["gamma"]),
        mask_type=mask_type,
        output=_f32(output),
        output_bias=_f32([[calibration.b]]),
    )


def _layers(
    weights: _Weights,
    prefix: str,
    config: Mapping[str, Any],
    columns: Sequence[int],
    shares: F64 | float = 1.0,
) -> tuple[GatedLayer, ...]:
    """Fold the gated layers of one feature transformer, without scaling down hidden units.

    `shares` multiplies the input columns.
    """
    names = [f"{prefix}.shared.glu_layers.{k}" for k in range(int(config["n_shared"]))]
    names += [f"{prefix}.specifics.glu_layers.{k}" for k in range(int(config["n_independent"]))]
    half = 2 * int(config["width"])
    layers: list[GatedLayer] = []
    for depth, name in enumerate(names):
        scale, shift = weights.batch_norm(f"{name}.bn.bn")
        matrix, bias = weights[f"{name}.fc.weight"] * scale[:, None], shift[:, None]
        if depth == 0:
            matrix, unit = matrix[:, list(columns)] * shares, 1.0
        else:
            unit = _HALVING ** (depth - 1)
            matrix = matrix * unit
        layers.append(
            GatedLayer(
                value=_f32(matrix[:half] / unit),
                value_bias=_f32(bias[:half] / unit),
                gate=_f32(matrix[half:]),
                gate_bias=_f32(bias[half:]),
            )
        )
    return tuple(layers)


def _f32(values: Any) -> F32:
    array: F32 = np.ascontiguousarray(np.asarray(values, np.float64), np.float32)
    return array
