"""Fit an encoder to training rows: its vocabularies and the transforms of its numeric columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.hashing import hash64
from serve.features.field_types import TYPES
from serve.features.matrix import Columns, Matrix
from serve.features.surface import Surface
from serve.log.reader import Log
from serve.model.encoder import Encoder, MultiColumn, NumericColumn, SingleColumn, vocabulary_entry
from training.data.scratch import empty, in_parts

# A category with fewer rows counts as unseen, because its embedding would be noise.
MIN_ROWS = 20
# Most entries in the vocabulary of a category column. This bounds the size of its embedding table.
MAX_VOCABULARY = 1_000
# Most entries in the vocabulary of a column with several values. Each is an input of the network.
MAX_HOT = 32
# Largest width of an embedding.
MAX_EMBEDDING = 8


def fit_encoder(surface: Surface, columns: Columns, matrix: Matrix, strings: Mapping[int, str]) -> Encoder:
    """Fit an encoder to these rows. `strings` maps hashes to strings, as of `category_strings`."""
    kinds: Mapping[str, Any] = surface.features
    numeric = [_numeric(name, kinds[name], matrix.numeric[:, j]) for j, name in enumerate(columns.numeric)]
    parts = {name: matrix.category[:, part] for name, part in columns.category_parts()}
    single = []
    for name in columns.single:
        vocabulary = _vocabulary(parts[name], strings, MAX_VOCABULARY)
        size = min(MAX_EMBEDDING, 1 + int(np.sqrt(len(vocabulary))))
        single.append(SingleColumn(name, vocabulary, size))
    hot = {name: _vocabulary(parts[name], strings, MAX_HOT) for name, _ in columns.multi}
    multi = [MultiColumn(name, width, hot[name]) for name, width in columns.multi]
    return Encoder(tuple(numeric), tuple(single), tuple(multi))


def category_strings(surface: Surface, log: Log) -> dict[int, str]:
    """Map the category hashes of the log back to their strings."""
    context = log.exposures["context"]
    columns = [(f, pc.struct_field(context, i)) for i, f in enumerate(surface.fields["context"].values())]
    for table, owner in ((log.viewers, "viewer"), (log.candidates, "candidate")):
        columns += [(declared, table[name]) for name, declared in surface.fields[owner].items()]
    strings: set[str] = set()
    for declared, values in columns:
        type_ = TYPES[declared.type]
        if type_.is_hashed:
            flat = pc.list_flatten(values) if type_.is_list else values
            strings.update(pc.unique(flat).to_pylist())
    return {hash64(value): value for value in strings if value is not None}


def tree_columns(encoder: Encoder, matrix: Matrix) -> tuple[NDArray[np.float32], list[int]]:
    """Return the columns `[N, K]` encoded for trees, and the numbers of the categorical columns."""
    width = len(encoder.numeric) + encoder.num_hot + len(encoder.single)
    columns = empty((len(matrix.numeric), width), np.float32)
    for part in in_parts(len(columns)):
        encoded = encoder.encode(matrix.numeric[part], matrix.category[part])
        np.concatenate(encoded, axis=1, out=columns[part], casting="same_kind")
    return columns, list(range(width - len(encoder.single), width))


def _numeric(name: str, kind: Any, values: NDArray[np.float32]) -> NumericColumn:
    present = values[np.isfinite(values)].astype(np.float64)
    if kind.transform == "log1p":
        present = np.sign(present) * np.log1p(np.abs(present))
    mean, std = (float(present.mean()), float(present.std())) if len(present) else (0.0, 1.0)
    std = std if std > 1e-9 else 1.0
    return NumericColumn(name, kind.transform, mean, std, bool(len(present) < len(values)))


def _vocabulary(hashes: NDArray[np.uint64], strings: Mapping[int, str], most: int) -> tuple[str, ...]:
    """Return the most frequent entries. Ties go by hash, so equal data gives an equal encoder."""
    values, counts = np.empty(0, np.uint64), np.empty(0)
    for part in in_parts(len(hashes)):
        some = hashes[part]
        new, more = np.unique(some[some != 0], return_counts=True)
        values, at = np.unique(np.append(values, new), return_inverse=True)
        counts = np.bincount(at, np.append(counts, more)).astype(np.float64)
    order = np.lexsort((values, -counts))
    kept = [int(values[i]) for i in order if counts[i] >= min(MIN_ROWS, counts.max())][:most]
    return tuple(vocabulary_entry(value, strings.get(value)) for value in kept)
