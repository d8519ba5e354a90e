"""Read a CSV as it was exported: its encoding, its separator, and ids as the text that it holds."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from serve.contract.errors import TabrankError

# pyarrow infers the types of a CSV from its first block, so make the block (1 GiB) hold all its
# rows.
BLOCK_BYTES = 1 << 30
# An empty cell is a missing value, also in a column of strings. So are NA, N/A, #N/A, NaN, nan,
# NULL, null and n/a, and what MySQL and web analytics write.
WORDS = [*pcsv.ConvertOptions().null_values, r"\N", "(null)", "(not set)"]
# The first line of a file lies within this many bytes.
HEAD_BYTES = 1 << 16
# Separators by the name that is printed.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
# What Windows writes in Western Europe and America. A text in another encoding reads wrongly.
LIKELY = "cp1252"


@dataclass(frozen=True)
class Dialect:
    """How a file is written. What is None is found out."""

    encoding: str | None = None
    delimiter: str | None = None
    # The decimal mark of numbers, and the format of times.
    decimal: str | None = None
    time_format: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or not self.delimiter.isascii()):
            raise TabrankError(f"--delimiter: {self.delimiter!r} must be one ASCII character, such as ';'")
        if self.decimal not in (None, ".", ","):
            raise TabrankError(f"--decimal: {self.decimal!r} must be . or ,")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            raise TabrankError(
                f"--encoding: {self.encoding!r} is unknown; write one such as cp1252"
            ) from None


def read_csv(
    source: Path, dialect: Dialect, ids: Collection[str], nullable: Collection[str]
) -> tuple[pa.Table, str, list[str]]:
    """Return the table of a CSV, its separator, and notes on how it was read.

    The columns `ids` are the text that the file holds, so 007 differs from 7, and NA can be an id.
    In the `nullable` ones, the words for a missing value are missing values all the same.

    Raises:
        TabrankError: a cell is not of the file's encoding.
        ArrowException, OSError: the file is no CSV, or cannot be read.
    """
    with pa.input_stream(str(source), compression="detect") as stream:
        head = stream.read(HEAD_BYTES)
    encoding = dialect.encoding or ("utf-16" if head.startswith(UTF_16) else "utf-8")
    lines = head.decode(encoding, "replace").lstrip("\ufeff").splitlines() or [""]
    # Excel may write the separator into a line of its own.
    named = re.fullmatch(r'"?sep=(.)"?', lines[0])
    first = lines[1] if named and len(lines) > 1 else lines[0]
    if "\ufffd" in first:
        raise _refused(source, "the header", next(iter(head.splitlines())), encoding)
    counted = {mark: len(next(csv.reader([first], delimiter=mark), ())) for mark in SEPARATORS}
    found = max(SEPARATORS, key=counted.__getitem__) if first.strip() else ","
    parse = pcsv.ParseOptions(delimiter=dialect.delimiter or found)
    options = pcsv.ReadOptions(block_size=BLOCK_BYTES, encoding=encoding, skip_rows=int(named is not None))
    # With a decimal comma, "1.234" is a string, which `read_numbers` reads as 1234.
    given = {"null_values": WORDS, "decimal_point": dialect.decimal or "."}
    table = pcsv.read_csv(source, options, parse, pcsv.ConvertOptions(strings_can_be_null=True, **given))
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_binary(column.type):
            row, cell = next(_not_text(column))
            raise _refused(source, f"{name!r}, row {row}", cell, encoding)
    # pyarrow applies the words for a missing value to all columns, so read the ids on their own.
    texts = {name: pa.string() for name in ids if name in table.column_names}
    as_text = pcsv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
    as_text.include_columns = [*texts]
    read = pcsv.read_csv(source, options, parse, as_text).columns if texts else []
    for name, text in zip(texts, read, strict=True):
        # A viewer called NULL is nobody, while a candidate may well be called NA.
        is_word = pc.is_in(text, pa.array(WORDS))
        text = pc.if_else(is_word, None, text) if name in nullable else text
        table = table.set_column(table.column_names.index(name), name, text)
    notes = [f"note: {source} is read as UTF-16"] * (encoding == "utf-16" and not dialect.encoding)
    if found != "," and not dialect.delimiter:
        notes.append(f"note: the columns of {source} are separated by {SEPARATORS[found]}")
    if dialect.encoding and codecs.lookup(encoding).name != "utf-8" and _is_utf_8(head):
        notes.append(
            f"warning: {source} looks like UTF-8; leave --encoding out unless it reads wrongly without"
        )
    return table, dialect.delimiter or found, notes


def _is_utf_8(head: bytes) -> bool:
    """Return whether the bytes have letters beyond ASCII, in UTF-8; the last one may be cut."""
    try:
        return not codecs.getincrementaldecoder("utf-8")().decode(head).isascii()
    except UnicodeDecodeError:
        return False


def _not_text(column: pa.ChunkedArray) -> Iterator[tuple[int, bytes]]:
    """Yield the cells that are no UTF-8, with their rows."""
    for row, cell in enumerate(column):
        value = cell.as_py() or b""
        if "\ufffd" in value.decode(errors="replace"):
            yield row, value


def _refused(source: Path, where: str, cell: bytes, encoding: str) -> TabrankError:
    return TabrankError(
        f"{source}: {where} is not {encoding}; as {LIKELY} it is {cell.decode(LIKELY, 'replace')!r:.60}; if that is "
        f"right, repeat with --encoding {LIKELY}, else with the encoding in which the file was saved"
    )
