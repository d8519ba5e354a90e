"""Words for people in a surface: labels and units of features."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve.contract.errors import TabrankError
from serve.contract.typed_reader import checked_by
from serve.contract.validation import typed

# Limits the characters of a label, which must fit one line of a screen. An answer may hold
# thousands of labels.
MAX_WORDS = 80


def _words(value: object, where: str) -> str:
    text: str = typed(value, str, where)
    if not text.strip() or len(text) > MAX_WORDS or not text.isprintable():
        raise TabrankError(f"{where}: {text!r} must be words on one line, 1 to {MAX_WORDS} characters")
    return text


Words = Annotated[str, checked_by(_words), Field(json_schema_extra={"maxLength": MAX_WORDS})]
