"""The columns of a flat file, as the options of `import csv` name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.contract.errors import TabrankError
from serve.contract.validation import spelled
from training.data.csv_text import Dialect

# Each option that names ids, and the column of the log that holds these ids.
IDS = {"candidate": "candidate", "viewer": "viewer", "slate": "request_id"}


@dataclass(frozen=True)
class FlatColumns:
    """The names of a flat file's columns, and how its rows are grouped into slates.

    The columns `events` hold 1, true, yes or the kind of event where the viewer acted. Without
    `slate`, a slate is the rows of one viewer at one time or, with `window_ms`, within that many ms
    of the slate's first row.
    """

    candidate: str
    time: str
    events: tuple[str, ...]
    viewer: str | None = None
    slate: str | None = None
    position: str | None = None
    window_ms: float = 0.0
    # Columns whose numbers are codes of categories.
    categories: tuple[str, ...] = ()
    # The column of the amount of each kind of event that has one.
    amounts: Mapping[str, str] = field(default_factory=dict)
    # The kind of ids that each column is given to, as a key of `training.data.fates.OWNERS`.
    owners: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        if self.window_ms and (self.slate or not self.viewer):
            raise TabrankError("--window: groups the rows of a viewer; give --viewer too, and not --slate")

    @property
    def rule(self) -> str:
        """Return in words how rows are grouped into slates."""
        whose = f"of the same {self.viewer} " if self.viewer else ""
        when = f"within {spelled(self.window_ms / 1e3)}, by" if self.window_ms else "at the same"
        return f"the rows with the same {self.slate}" if self.slate else f"the rows {whose}{when} {self.time}"

    @property
    def given(self) -> list[tuple[str, str]]:
        """Return (option, name of the column) for each column that an option names."""
        one = [(option, getattr(self, option)) for option in (*IDS, "time", "position")]
        more = [("event", name) for name in self.events] + [("value", name) for name in self.amounts.values()]
        return [pair for pair in one if pair[1]] + more
