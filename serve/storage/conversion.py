"""Conversion of columns to the types of a log: ids to strings, datetimes to milliseconds.

It is here and not in `log`, because load tests and drafts of a surface read logs with it too.
"""

from __future__ import annotations

from collections.abc import Container

import pyarrow as pa

# Keys in the metadata of a converted column, for the conversion in words and for the type before
# it.
CONVERSION, GIVEN_TYPE = b"conversion", b"given_type"
# Columns of ids in each table. In another table, a column of the same name is a field.
IDS = {
    "viewers": ("id",),
    "candidates": ("id",),
    "exposures": ("request_id", "viewer", "candidates"),
    "events": ("id", "request_id", "viewer", "candidate"),
}


def converted(table: pa.Table, ids: Container[str]) -> pa.Table:
    """Convert ids of whole numbers, datetimes and booleans to the types of a log.

    `ids` names the columns of ids. A converted column, or part of a struct, states in its metadata
    the conversion under `CONVERSION`, and its former type under `GIVEN_TYPE`. Dictionaries, large
    lists and large strings become plain ones without such a note.
    """
    flag = "erased" if "viewer" in ids else "removed"
    # Arrow casts datetimes of any unit to milliseconds, and only then to whole numbers.
    staged, wanted = (
        pa.schema([f if f.name == flag else _canonical(f, f.name in ids, time) for f in table.schema])
        for time in (pa.timestamp("ms"), pa.int64())
    )
    return table if wanted == table.schema else table.cast(staged, safe=False).cast(wanted)


def _canonical(field: pa.Field, is_id: bool, time: pa.DataType) -> pa.Field:
    """Return the field after conversion, with `time` as the type of datetimes."""
    kind, words = field.type, ""
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_canonical(part, False, time) for part in kind]))
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    item = kind.value_type if is_list else kind
    item = item.value_type if pa.types.is_dictionary(item) else item
    if is_id and pa.types.is_integer(item):
        item, words = pa.string(), 'whole numbers are read as strings, as requests must have them: "17"'
    elif pa.types.is_timestamp(item) or pa.types.is_date(item):
        item, words = time, "datetimes are read as milliseconds since 1970, in UTC if they have no zone"
    elif pa.types.is_boolean(item):
        item, words = pa.float64(), "true is read as 1, false as 0"
    elif pa.types.is_large_string(item):
        item = pa.string()
    plain = field.with_type(pa.list_(item) if is_list else item)
    return plain.with_metadata({CONVERSION: words, GIVEN_TYPE: str(kind)}) if words else plain
