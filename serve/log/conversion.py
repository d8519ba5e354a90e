"""Conversion of a log's columns to its own types: ids to strings, datetimes to milliseconds."""

from __future__ import annotations

import pyarrow as pa

# Key in the metadata of a converted column: the conversion in words.
CONVERSION = b"conversion"
IDS = ("id", "request_id", "viewer", "candidate", "candidates")


def converted(table: pa.Table) -> pa.Table:
    """Convert ids of whole numbers, datetimes and booleans to the types of a log.

    A converted column, or part of a struct, states the conversion in its metadata under
    `CONVERSION`.
    """
    # Arrow casts datetimes of any unit to milliseconds, and only then to whole numbers.
    staged, wanted = (
        pa.schema([_canonical(field, field.name in IDS, time) for field in table.schema])
        for time in (pa.timestamp("ms"), pa.int64())
    )
    return table if wanted == table.schema else table.cast(staged, safe=False).cast(wanted)


def _canonical(field: pa.Field, is_id: bool, time: pa.DataType) -> pa.Field:
    """Return the field as it is converted, with `time` as the type of datetimes."""
    kind = field.type
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_canonical(part, False, time) for part in kind]))
    is_list = pa.types.is_list(kind)
    if is_id and pa.types.is_integer(kind.value_type if is_list else kind):
        wanted = pa.list_(pa.string()) if is_list else pa.string()
        words = 'whole numbers are read as strings, as requests must have them: "17"'
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        wanted, words = time, "datetimes are read as milliseconds since 1970, in UTC if they have no zone"
    elif pa.types.is_boolean(kind) and field.name != "removed":
        wanted, words = pa.float64(), "true is read as 1, false as 0"
    else:
        return field
    return field.with_type(wanted).with_metadata({CONVERSION: words})
