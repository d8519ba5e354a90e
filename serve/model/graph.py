"""Inference graph: the trained TabNet in eval mode, with all constants folded into its matrices.

`serve.model.folding` turns trained weights into matrices, and `forward` applies them. `forward` is
written once, over an `Ops` namespace: `serve.model.torch_ops` computes with it, and
`training.network.export` builds ONNX nodes with it.

Letters: R rows, F numeric columns, I missing indicators, V multi-hot columns, K1 single category
columns, G = F + I + V + K1 columns that the masks choose from, D columns after the embedding, H
hidden units, O outcomes.

Arrays are laid out as [columns, R]. Sums over columns and thresholds per row then run along whole
rows of memory, which is two to four times as fast in ONNX Runtime as [R, columns]. A small batch
costs 0.7 µs for each node, and a large one costs its passes over [G, R]; the graph minimises both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve.contract.errors import TabrankError
from serve.features.slots import F32, I64
from serve.model.encoder import CLIP
from serve.model.masks import MaskType, mask
from serve.model.ops import LARGE, Ops

T = TypeVar("T")


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
    """One decision step: the attention [G, H] selects columns, and the layers read them."""

    attention: F32
    attention_bias: F32
    layers: tuple[GatedLayer, ...]


@dataclass(frozen=True)
class Embedding:
    """Single category columns with the same embedding size e, and their common table [N, e].

    A mask value is divided among the e columns of a category, so the tables are divided by e.
    """

    columns: I64
    offsets: I64
    table: F32


@dataclass(frozen=True)
class Folded:
    """The constants of `forward`. Numeric columns are reordered: `logged` first, then `plain`."""

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


def forward(ops: Ops[T], folded: Folded, numeric: T, hot: T, index: T, *, exact: bool) -> tuple[T, T]:
    """Score numeric f32 [R, F], hot f32 [R, V], index i64 [R, K1] → shares [R, O], residual [R].

    A share is the expected amount of an outcome divided by its cap. For an event it is the
    probability.

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
    return ops.transpose(ops.sigmoid(logit)), _residual(ops, sums)


def _inputs(ops: Ops[T], folded: Folded, numeric: T, hot: T, index: T) -> T:
    """Return the network's inputs [D, R], embedded and batch normed, as `Network.inputs` does."""
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
    # This is the sign of each number; ONNX Runtime's operator Sign is slow.
    sign = ops.clip(ops.mul(logged, ops.scalar(LARGE)), -1.0, 1.0)
    value = ops.mul(ops.log(ops.add(ops.abs(logged), ops.scalar(1.0))), sign)
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
    # Backends treat NaN in a maximum differently, so replace it before.
    return ops.flatten(ops.max(ops.where(ops.is_nan(gap), one, gap)))
