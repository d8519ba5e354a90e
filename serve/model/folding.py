"""Folding: turn the weights of a trained TabNet into the constants of the inference graph.

The letters are those of `serve.model.graph`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import TabrankError
from serve.features.slots import F32, F64, I64
from serve.model.encoder import Encoder
from serve.model.graph import Calibration, DecisionStep, Embedding, Folded, GatedLayer

_BATCH_NORM_EPSILON = 1e-5
_HALVING = math.sqrt(0.5)
"""TabNet scales each residual sum by this factor, to keep the variance."""


class _Weights:
    """A state dict, read as float64."""

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> F64:
        if name not in self._weights:
            raise TabrankError(f"network: {name!r} is missing; was it exported by this release?")
        value = np.asarray(self._weights[name], np.float64)
        if not np.isfinite(value).all():
            raise TabrankError(f"network: weight {name!r} is not finite; the training diverged, fit again")
        return value

    def batch_norm(self, name: str) -> tuple[F64, F64]:
        """Return (scale, shift) of a batch norm in eval mode."""
        scale = self[f"{name}.weight"] / np.sqrt(self[f"{name}.running_var"] + _BATCH_NORM_EPSILON)
        return scale, self[f"{name}.bias"] - scale * self[f"{name}.running_mean"]


class _Places(NamedTuple):
    """Order of the graph's columns, as positions in the trained network.

    Dense columns come first, and among these the numbers that get a logarithm. Single categories
    follow, ordered by embedding size. `widths` is the number of columns that each of the G columns
    becomes in the embedding.
    """

    numbers: list[int]  # [F]
    dense: list[int]  # [F + I + V]
    same_size: list[I64]  # single columns of each embedding size
    chosen: I64  # [G]
    columns: I64  # [D]
    widths: I64  # [G]


def _places(encoder: Encoder) -> _Places:
    logged = [column.transform == "log1p" for column in encoder.numeric]
    numbers = sorted(range(len(logged)), key=lambda i: not logged[i])
    num_dense = len(logged) + len(encoder.indicators) + encoder.num_hot
    dense = [*numbers, *range(len(logged), num_dense)]
    sizes = np.array([column.embedding for column in encoder.single], np.int64)
    same_size = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    single = np.concatenate([np.empty(0, np.int64), *same_size])
    chosen = np.array([*dense, *(num_dense + single)], np.int64)
    widths = np.array([*[1] * num_dense, *sizes[single]], np.int64)
    first = np.array([*dense, *(num_dense + np.cumsum(sizes) - sizes)[single]], np.int64)
    # The position of each column within the embedding that it belongs to.
    within = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    return _Places(numbers, dense, same_size, chosen, np.repeat(first, widths) + within, widths)


def fold(
    state: Mapping[str, NDArray[Any]],
    encoder: Encoder,
    config: Mapping[str, Any],
    calibrations: Sequence[Calibration],
) -> Folded:
    """Fold a TabNet's state dict, in float64.

    Batch norms are folded into the adjacent linear layers and the embedding tables. TabNet's
    residual scale is folded into the layers that follow. Padded and scaled matrices stand for the
    two halves of the hidden units, and for the halved logits of entmax. The calibration is folded
    into the output.

    Args:
        state: the state dict of `training.network.network.Network.tabnet`.
        encoder: the columns that the network was trained on.
        config: the fields of `training.network.network.NetworkConfig`.
        calibrations: the calibration of each outcome, fitted on the network's logits.

    Raises:
        TabrankError: a weight is missing or not finite.
    """
    weights, at, width = _Weights(state), _places(encoder), int(config["width"])
    numbers = [encoder.numeric[i] for i in at.numbers]
    num_logged = sum(column.transform == "log1p" for column in numbers)
    scale, shift = weights.batch_norm("tabnet.encoder.initial_bn")
    shares = np.repeat(at.widths, at.widths)
    slopes = np.array([[calibration.a] for calibration in calibrations])
    output = np.zeros((len(slopes), 2 * width))
    output[:, :width] = weights["tabnet.final_mapping.weight"] * _residual_scale(config) * slopes
    return Folded(
        logged=np.array(at.numbers[:num_logged], np.int64),
        plain=np.array(at.numbers[num_logged:], np.int64),
        mean=_f32([[column.mean] for column in numbers]),
        scale=_f32([[1.0 / column.std] for column in numbers]),
        indicators=np.array([at.numbers.index(i) for i in encoder.indicators], np.int64),
        num_hot=encoder.num_hot,
        dense_scale=_f32(scale[at.dense][:, None]),
        dense_shift=_f32(shift[at.dense][:, None]),
        embedded=tuple(_embeddings(weights, encoder, at, scale, shift)),
        num_columns=len(at.chosen),
        spread=None if (at.widths == 1).all() else np.repeat(np.arange(len(at.widths)), at.widths),
        splitter=_layers(weights, "tabnet.encoder.initial_splitter", config, at.columns, shares),
        steps=tuple(_decision_step(weights, config, at, step) for step in range(int(config["n_steps"]))),
        gamma=float(config["gamma"]),
        mask_type=config["mask_type"],
        output=_f32(output),
        output_bias=_f32([[calibration.b] for calibration in calibrations]),
    )


def _embeddings(
    weights: _Weights, encoder: Encoder, at: _Places, scale: F64, shift: F64
) -> Iterator[Embedding]:
    """Yield the tables of each embedding size, with `scale` and `shift` of the batch norm."""
    first = at.columns[len(at.dense) :]
    for members in at.same_size:
        size = encoder.single[members[0]].embedding
        tables = []
        for k in members:
            own, first = first[:size], first[size:]
            tables.append((weights[f"embedder.embeddings.{k}.weight"] * scale[own] + shift[own]) / size)
        offsets = np.cumsum([0, *(len(table) for table in tables[:-1])])
        yield Embedding(members, offsets[:, None], _f32(np.concatenate(tables)))


def _decision_step(weights: _Weights, config: Mapping[str, Any], at: _Places, step: int) -> DecisionStep:
    """Fold one decision step: its attention reads the second half of the hidden units."""
    prefix, width = f"tabnet.encoder.att_transformers.{step}", int(config["width"])
    halving = 0.5 if config["mask_type"] == "entmax" else 1.0
    norm, bias = weights.batch_norm(f"{prefix}.bn.bn")
    attention = np.zeros((len(at.chosen), 2 * width))
    matrix = (weights[f"{prefix}.fc.weight"] * norm[:, None])[at.chosen]
    attention[:, width:] = matrix * (_residual_scale(config) * halving)
    layers = _layers(weights, f"tabnet.encoder.feat_transformers.{step}", config, at.columns)
    return DecisionStep(_f32(attention), _f32(bias[at.chosen, None] * halving), layers)


def _residual_scale(config: Mapping[str, Any]) -> float:
    """Return the scale of a feature transformer's output, which `_layers` leaves to others."""
    return _HALVING ** (int(config["n_shared"]) + int(config["n_independent"]) - 1)


def _layers(
    weights: _Weights, prefix: str, config: Mapping[str, Any], columns: I64, shares: I64 | float = 1.0
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
            matrix, unit = matrix[:, columns] * shares, 1.0
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
    return np.ascontiguousarray(np.asarray(values, np.float64), np.float32)
