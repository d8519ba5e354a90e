"""Attention masks of TabNet: sparsemax and 1.5-entmax of each row, by fixed passes or by a sort.

Both are p(τ) = relu(z - τ)^k with k = 1 for sparsemax (Martins & Astudillo 2016) and k = 2 for
1.5-entmax (Peters, Niculae & Martins 2019, of z/2), where the threshold τ* makes p sum to 1. A sort
finds τ* exactly, but takes most of the time of a small batch on a CPU. Newton's method from the
left finds τ* in a few passes:

* g(τ) = ‖relu(z - τ)‖_k is convex in τ (a norm of non-negative convex functions) and decreasing,
  and g(τ*) = 1 exactly where the mask sums to 1. A tangent lies below a convex function. From τ ≤
  τ*, the root of the tangent, τ + (g - 1) / |g'|, is again ≤ τ*, and no step goes back: the
  thresholds rise monotonically to τ*.
* The start is the root of the tangent at -∞, mean z - G^(-1/k). Starting from max z - 1 takes as
  many passes for sparsemax and one less for entmax, but in ONNX Runtime a maximum over columns
  costs more than a pass.
* k = 1: g' = -|support|, and the step is Michelot's (1986): drop what is below the threshold, solve
  for the rest. The support only shrinks, so that the threshold is exact after at most G steps.
* k = 2: g' = -Σ relu / g. Near τ* convergence is quadratic. Plain Newton on Σ relu² takes the
  shorter step (g² - 1) / (2 Σ relu), because g ≥ 1.

Each pass starts from the logits themselves, so that rounding is relative to the current threshold,
even if some logits are far from it. The last pass removes this rounding too.

The number of passes is fixed and may be too small. The sum of each mask is therefore returned too.
It is then not 1, or it is NaN if logits are so large that the mask's 1 is lost in their rounding.
Letters: G columns to choose from, R rows; all arrays are [G, R], sums [1, R].
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

from serve.features.slots import F32
from serve.model.ops import Ops

T = TypeVar("T")
MaskType = Literal["sparsemax", "entmax"]


def num_passes(mask_type: MaskType, num_columns: int) -> int:
    """Return a number of passes that suffices for nearly all rows.

    This was measured on 30,000 rows of normal logits, for each of ten standard deviations from 0.03
    to 20 and 13 widths from 2 to 300 columns. No row had a residual above 1e-6.
    """
    bits = num_columns.bit_length()
    return 1 + bits if mask_type == "sparsemax" else 3 + (bits + 1) // 2


def mask(ops: Ops[T], mask_type: MaskType, logits: T, num_columns: int, *, exact: bool) -> tuple[T, T]:
    """Return the mask [G, R] of logits [G, R] and its sum [1, R]; entmax logits come halved.

    `exact` finds the threshold by a sort, and one pass removes its rounding. Otherwise the sum is
    1, up to rounding, in each row where the passes sufficed.
    """
    ones = ops.constant(_ones(num_columns))
    if exact:
        # A logit that is more than 1 below the largest is 0 in the mask, so clipping changes
        # nothing.
        logits = ops.clip(ops.sub(logits, ops.max(logits)), -2.0, 0.0)
        threshold = _SORTED[mask_type](ops, logits, num_columns, ones)
        chosen = _NEWTON[mask_type](ops, logits, threshold, 1, ones)
    else:
        share, below = (ops.constant(array) for array in _tangent(mask_type, num_columns))
        threshold = ops.linear(share, logits, below)
        chosen = _NEWTON[mask_type](ops, logits, threshold, num_passes(mask_type, num_columns), ones)
    return chosen, ops.matmul(ones, chosen)


def _sparsemax(ops: Ops[T], logits: T, threshold: T, passes: int, ones: T) -> T:
    minus_one = ops.constant(_MINUS_ONE)
    while True:
        excess = ops.relu(ops.sub(logits, threshold))
        support = ops.positive(excess)
        step = ops.div(ops.linear(ones, excess, minus_one), ops.matmul(ones, support))
        passes -= 1
        if not passes:
            return ops.relu(ops.sub(excess, ops.mul(step, support)))
        threshold = ops.add(threshold, step)


def _entmax(ops: Ops[T], logits: T, threshold: T, passes: int, ones: T) -> T:
    while True:
        excess = ops.relu(ops.sub(logits, threshold))
        square = ops.matmul(ones, ops.mul(excess, excess))
        step = ops.div(ops.sub(square, ops.sqrt(square)), ops.matmul(ones, excess))
        passes -= 1
        if not passes:
            excess = ops.relu(ops.sub(excess, step))
            return ops.mul(excess, excess)
        threshold = ops.add(threshold, step)


def _sparsemax_threshold(ops: Ops[T], shifted: T, num_columns: int, ones: T) -> T:
    ordered, rank, running = _ordered(ops, shifted, num_columns)
    one = ops.scalar(1.0)
    outside = ops.to_float(ops.less_equal(ops.mul(rank, ordered), ops.sub(ops.matmul(running, ordered), one)))
    support = ops.sub(one, outside)
    total = ops.sub(ops.matmul(ones, ops.mul(ordered, support)), one)
    return ops.div(total, ops.matmul(ones, support))


def _entmax_threshold(ops: Ops[T], shifted: T, num_columns: int, ones: T) -> T:
    ordered, rank, running = _ordered(ops, shifted, num_columns)
    one, zero = ops.scalar(1.0), ops.scalar(0.0)
    mean = ops.div(ops.matmul(running, ordered), rank)
    mean_square = ops.div(ops.matmul(running, ops.mul(ordered, ordered)), rank)
    spread = ops.mul(rank, ops.sub(mean_square, ops.mul(mean, mean)))
    thresholds = ops.sub(mean, ops.sqrt(ops.relu(ops.div(ops.sub(one, spread), rank))))
    size = ops.matmul(ones, ops.to_float(ops.less_equal(thresholds, ordered)))
    up_to_size = ops.where(ops.less_equal(rank, size), thresholds, zero)
    return ops.matmul(ones, ops.where(ops.less_equal(size, rank), up_to_size, zero))


def _ordered(ops: Ops[T], shifted: T, num_columns: int) -> tuple[T, T, T]:
    """Return logits sorted descending, ranks [G, 1] from 1, and the running-sum matrix [G, G]."""
    return ops.sort(shifted), ops.constant(_ranks(num_columns)), ops.constant(_running_sum(num_columns))


_MINUS_ONE = np.full((1, 1), -1.0, np.float32)


@lru_cache(maxsize=64)
def _tangent(mask_type: MaskType, num_columns: int) -> tuple[F32, F32]:
    """Return the tangent's root at -∞: weights [1, G] of the mean logit, and offset [1, 1]."""
    below = num_columns ** (-1.0 if mask_type == "sparsemax" else -0.5)
    return _ones(num_columns) / np.float32(num_columns), np.full((1, 1), -below, np.float32)


@lru_cache(maxsize=64)
def _ones(num_columns: int) -> F32:
    return np.ones((1, num_columns), np.float32)


@lru_cache(maxsize=64)
def _ranks(num_columns: int) -> F32:
    return np.arange(1, num_columns + 1, dtype=np.float32)[:, None]


@lru_cache(maxsize=64)
def _running_sum(num_columns: int) -> F32:
    return np.tril(np.ones((num_columns, num_columns), np.float32))


_NEWTON = {"sparsemax": _sparsemax, "entmax": _entmax}
_SORTED = {"sparsemax": _sparsemax_threshold, "entmax": _entmax_threshold}
