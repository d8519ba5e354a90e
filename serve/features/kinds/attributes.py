"""Kinds that read attributes and keep no state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import StrictBool

from serve.contract.reasons import YES_NO
from serve.features.batch import Batch
from serve.features.kind import Kind, Transform, Words, field_of
from serve.features.slots import F64, I64, U64, FieldRef


@dataclass(frozen=True)
class Number(Kind, kind="number"):
    """A number or a time, as it is stored or stated.

    Attributes:
        field: A number or a time of a viewer, a candidate or the context.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    field: Annotated[FieldRef, field_of("number", "time")]
    transform: Transform = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where missing."""
        return batch.field(self.field)


@dataclass(frozen=True)
class Category(Kind, kind="category"):
    """One category, of which the model learns what each frequent value is worth.

    Attributes:
        field: A category of a viewer, a candidate or the context.
    """

    categorical = True
    field: Annotated[FieldRef, field_of("category")]

    def value(self, batch: Batch) -> U64:
        """Return `[R]`, 0 where missing."""
        return batch.field(self.field)


@dataclass(frozen=True)
class MultiCategory(Kind, kind="multi_category"):
    """All members of a set; each frequent member becomes a yes/no input of the model.

    Attributes:
        field: A set of a viewer, a candidate or the context.
    """

    categorical = True
    field: Annotated[FieldRef, field_of("set")]

    def value(self, batch: Batch) -> U64:
        """Return `[R, M]`."""
        return batch.field(self.field)

    def width(self, fields: Mapping[str, Mapping[str, Any]]) -> int:
        """Return the number of hashes in a row."""
        width: int = fields[self.field.owner][self.field.name].max
        return width


@dataclass(frozen=True)
class Age(Kind, kind="age"):
    """Seconds since the time in a field; 0 where that time is in the future.

    Attributes:
        field: A time of a viewer, a candidate or the context.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "time since {field}"
    unit: Words = field(default="s", repr=False, compare=False, kw_only=True)
    field: Annotated[FieldRef, field_of("time")]
    transform: Transform = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where the start is missing."""
        age_ms: F64 = batch.now_ms - batch.field(self.field)
        return np.maximum(age_ms, 0.0) / 1000.0


@dataclass(frozen=True)
class Match(Kind, kind="match"):
    """1 where viewer and candidate have the same category, else 0.

    Attributes:
        viewer: A category of viewers.
        candidate: A category of candidates.
    """

    template = "{candidate} equals {viewer}"
    unit: Words = field(default=YES_NO, repr=False, compare=False, kw_only=True)
    viewer: Annotated[FieldRef, field_of("category")]
    candidate: Annotated[FieldRef, field_of("category")]
    transform: ClassVar[Transform] = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where either category is missing."""
        ours, theirs = batch.field(self.viewer), batch.field(self.candidate)
        return np.where((ours == 0) | (theirs == 0), np.nan, (ours == theirs).astype(np.float64))


@dataclass(frozen=True)
class Member(Kind, kind="member"):
    """1 where the candidate's category is in the viewer's set, else 0.

    Attributes:
        viewer: A set of viewers.
        candidate: A category of candidates.
    """

    template = "{candidate} is among {viewer}"
    unit: Words = field(default=YES_NO, repr=False, compare=False, kw_only=True)
    viewer: Annotated[FieldRef, field_of("set")]
    candidate: Annotated[FieldRef, field_of("category")]
    transform: ClassVar[Transform] = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where the candidate's category is missing; 0 for an empty set."""
        theirs = batch.field(self.candidate)
        rows, _ = batch.places(batch.viewer[self.viewer.name], theirs)
        return np.where(theirs == 0, np.nan, np.bincount(rows, minlength=len(theirs)))


@dataclass(frozen=True)
class Overlap(Kind, kind="overlap"):
    """Number of members that the viewer's and the candidate's set have in common.

    Attributes:
        viewer: A set of viewers.
        candidate: A set of candidates.
        share: Whether to divide by the size of the candidate's set.
        transform: `log1p` gives the model log(1 + value), for values with a long tail.
    """

    template = "{candidate} shared with {viewer}"
    viewer: Annotated[FieldRef, field_of("set")]
    candidate: Annotated[FieldRef, field_of("set")]
    share: StrictBool = False
    transform: Transform = "none"

    def value(self, batch: Batch) -> F64:
        """Return `[R]`, NaN where the candidate's set is missing or empty."""
        theirs = batch.field(self.candidate)
        shared = batch.once((Overlap, self.viewer, self.candidate), self._shared)
        value: F64 = shared / (np.maximum((theirs != 0).sum(axis=1), 1) if self.share else 1)
        # The members of a set come before its empty places.
        value[theirs[:, 0] == 0] = np.nan
        return value

    def _shared(self, batch: Batch) -> I64:
        """Return the number of shared members `[R]`."""
        theirs = batch.field(self.candidate)
        rows = np.arange(len(theirs)).repeat(theirs.shape[1])
        shared = rows[batch.among(theirs.ravel(), rows, batch.viewer[self.viewer.name])]
        return np.bincount(shared, minlength=len(theirs))
