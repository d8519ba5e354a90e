"""Explain: the feature values of one row, in words."""

from __future__ import annotations

from typing import Any

from serve.encoder import Encoder, entry_hash
from serve.features import Columns, Matrix


def explain(columns: Columns, matrix: Matrix, row: int, encoder: Encoder | None) -> dict[str, Any]:
    """Each feature's raw value: a number, a string (or list of strings), null where missing.

    Categories are hashes in the service; the model's vocabularies name those that it knows, the others are
    written `#<hash>`.
    """
    known: dict[str, dict[int, str]] = {}
    if encoder:
        vocabularies = {column.name: column.vocabulary for column in encoder.single}
        vocabularies |= {column.name: column.vocabulary for column in encoder.multi}
        known = {
            name: {entry_hash(entry): entry for entry in entries} for name, entries in vocabularies.items()
        }

    def word(name: str, hashed: int) -> str | None:
        return None if hashed == 0 else known.get(name, {}).get(hashed, f"#{hashed:016x}")

    numbers = (float(value) for value in matrix.numeric[row])
    values: dict[str, Any] = {
        name: value if value == value else None for name, value in zip(columns.numeric, numbers, strict=True)
    }
    hashes = [int(value) for value in matrix.category[row]]
    for k, name in enumerate(columns.single):
        values[name] = word(name, hashes[k])
    at = len(columns.single)
    for name, width in columns.multi:
        values[name] = [word(name, hashed) for hashed in hashes[at : at + width] if hashed]
        at += width
    return values
